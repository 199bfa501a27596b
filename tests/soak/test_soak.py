"""Many runs of all sorts on one attached model: each decides as ``simulate`` or ``plan`` says, and memory stays where it was.

``MAGPOLICY_SOAK=1000`` makes so many runs in place of 30.
"""

import gc
import os
import random
import tracemalloc
from collections import Counter

import pytest

import magpolicy
from magpolicy import Schedule, plan, simulate

torch = pytest.importorskip("torch", reason="the torch extra is not installed")
diffusers = pytest.importorskip("diffusers", reason="the diffusers extra is not installed")

from pipes import PIPES  # noqa: E402

RUNS = int(os.environ.get("MAGPOLICY_SOAK", "30"))
LEAKED = 1_000 if RUNS >= 300 else 10_000
"""Bytes a run that may stay. Plans, settings and kinds of calls are remembered up to a bound, which few runs do not reach."""
FLUX = PIPES["FluxPipeline"]
SCHEDULERS = {
    "dynamic shift": {"use_dynamic_shifting": True},
    "no shift": {"shift": 1.0},
    "shift 3": {"shift": 3.0},
    "Karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "stochastic": {"stochastic_sampling": True},
}
RULES = ({"threshold": 0.06, "max_skips": 2, "retention": 0.2}, {"threshold": 0.3, "max_skips": 5, "retention": 0.0})


OF_A_RUN = ("HostRun", "Session", "Run", "ResidualStore", "PipelineCall", "MagPolicy", "DenoiserCall", "Observers", "Record")


def alive():
    """What runs leave: the bytes of all tensors, and the objects of ours that belong to one run. Plans are remembered."""
    found = Counter()
    for each in gc.get_objects():
        if type(each) in (torch.Tensor, torch.nn.Parameter):  # not those of the compiler, whose sizes are symbols
            found["bytes of tensors"] += each.nbytes
        elif str(type(each).__module__).startswith("magpolicy") and type(each).__name__ in OF_A_RUN:
            found[type(each).__name__] += 1
    return found


def levels_of(report):
    first = report.trace[0].stream
    return [entry.sigma for entry in report.trace if entry.stream == first]


def one_run(dice, calibration):
    """Settings of a run, and the schedule that they say for its noise levels."""
    kind = dice.choice(["rule", "plan", "schedule", "compute", "guarded"])
    if kind == "rule":
        rule = dice.choice(RULES)
        return {"curve": calibration.curve, "calibration": None, "speedup": None, **rule}, lambda levels, _: simulate(
            calibration.curve, sigmas=levels, **rule
        )
    if kind == "compute":
        return {"speedup": 1.0}, lambda levels, _: Schedule.from_mask([True] * len(levels))
    if kind == "schedule":
        mask = [True, *(dice.random() < 0.5 for _ in range(7))]
        given = {"schedule": Schedule.from_mask(mask), "calibration": None, "speedup": None}
        return given, lambda levels, report: Schedule.from_mask(mask) if len(levels) == len(mask) else report.schedule
    more = {"speedup": dice.choice([1.3, 1.8, 2.4])}
    guard = {"safeguard": 1e6} if kind == "guarded" else {}
    return more | guard, lambda levels, _: plan(calibration, sigmas=levels, **more)


@pytest.mark.filterwarnings("ignore::magpolicy.PlanWarning")  # a schedule that is stretched over another number of steps
def test_a_long_life():
    pipe, dice, measured = FLUX.make(), random.Random(3), []
    with magpolicy.attach(pipe, calibrate=True) as handle:
        FLUX.run(pipe, "true cfg", 12)
        calibration = handle.calibration
    tracemalloc.start()
    try:
        with magpolicy.attach(pipe, calibration=calibration, speedup=2.0) as handle:
            for number in range(RUNS):
                pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**SCHEDULERS[dice.choice(list(SCHEDULERS))])
                settings, expected = one_run(dice, calibration)
                way, size, steps = dice.choice(list(FLUX.ways)), dice.choice([16, 24]), dice.randint(6, 14)
                with handle.settings(**settings):
                    result = FLUX.run(pipe, way, steps, number, height=size, width=size)
                report = handle.report
                assert result.isfinite().all()
                assert handle.residuals_held == 0
                wanted = expected(levels_of(report), report)
                for stream, mask in zip(report.schedule.streams, report.schedule.masks, strict=True):
                    row = wanted.streams.index(stream) if stream in wanted.streams else 0
                    assert mask == wanted.masks[row], (number, settings, way, size, steps)
                if number in (RUNS // 2, RUNS - 1):
                    del report, result, wanted, settings, expected
                    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler()  # the last run's has tensors for its steps
                    gc.collect()
                    measured.append((number, tracemalloc.get_traced_memory()[0], alive()))
    finally:
        tracemalloc.stop()
    (first, before, then), (last, after, now) = measured
    assert abs(now.pop("bytes of tensors") - then.pop("bytes of tensors")) < 1_000  # the last runs have other numbers of steps
    assert now == then
    assert (after - before) / (last - first) < LEAKED
    print(f"{(after - before) / (last - first):.0f} bytes a run from run {first} to {last}")
