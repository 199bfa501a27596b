"""A user's file, checked and never run: the core's public names have the types that their documentation tells.

A line that ends in ``type: ignore`` is a mistake that a type checker has to find; one that it does not find is an error itself.
"""

from pathlib import Path

from typing_extensions import assert_type

import magpolicy
from magpolicy.testing import check_policy

schedule = magpolicy.simulate("wan2.1-t2v-1.3b", steps=30, threshold=0.06, max_skips=2)
assert_type(schedule, magpolicy.Schedule)
assert_type(schedule.steps, int)
assert_type(schedule.computed, int)
assert_type(schedule.mask, tuple[bool, ...])
assert_type(schedule.speedup, float)
assert_type(schedule.reasons(), dict[str, int])
assert_type(magpolicy.load_schedule(Path("best.json")), magpolicy.Schedule)

planned = magpolicy.plan(None, steps=28, speedup="balanced")
assert_type(planned, magpolicy.Schedule)

preset = magpolicy.preset("flux")
assert_type(preset, magpolicy.Preset)
assert_type(preset.name, str)
assert_type(magpolicy.presets()["flux.1-dev"], magpolicy.Preset)

calibration = magpolicy.load_calibration("flux.json")
assert_type(calibration, magpolicy.Calibration)
assert_type(magpolicy.expected_errors(calibration, planned)["cond"], tuple[float, ...])

policy = magpolicy.MagPolicy([1.0, 1.01, 1.0], threshold=0.05, max_skips=2, retention=0.25)
assert_type(policy.decide(), magpolicy.Decision)
assert_type(policy.step, int)
assert_type(policy.skips, int)
assert_type(policy.decide().skip, bool)

with magpolicy.Session("flux", steps=28) as session:
    assert_type(session, magpolicy.Session)
    assert_type(session.steps, int)
    assert_type(session.sigmas, tuple[float, ...] | None)
    assert_type(session.schedule, magpolicy.Schedule | None)
    assert_type(session.decide(["cond", "uncond"]), magpolicy.Decision)
    session.commit()
assert_type(session.trace, tuple[magpolicy.TraceEntry, ...])


class MyHost:
    """A plugin, as an adapter's distribution has one."""

    @magpolicy.hookimpl
    def attach(self, target: object, request: magpolicy.AttachRequest) -> object | None:
        assert_type(request.session(steps=28), magpolicy.Session)
        return None


try:
    magpolicy.simulate("unknown", steps=4)
except magpolicy.PresetError as problem:
    assert_type(problem, magpolicy.PresetError)
    told: magpolicy.MagPolicyError | ValueError | LookupError = problem

check_policy(lambda: policy)

magpolicy.simulate("flux", steps="28")  # type: ignore[arg-type]
magpolicy.simulate("flux", thresh=0.1)  # type: ignore[call-arg]
magpolicy.MagPolicy([1.0])  # type: ignore[call-arg]
magpolicy.Calibrations  # type: ignore[attr-defined]
policy.step.real.nothing  # type: ignore[attr-defined]
