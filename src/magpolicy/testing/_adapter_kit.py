"""The conformance kit: what every adapter must hold, checked on a real model of its host.

The kit drives an adapter and the bare policy with the same curve and compares what ran with what :func:`magpolicy.simulate`
said. It needs a *rig*: the few verbs in which hosts differ.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from magpolicy._errors import ArgumentError
from magpolicy.hookspecs import hookimpl
from magpolicy.plugin_system._registry import manager
from magpolicy.policy._decision import Decision
from magpolicy.run._simulate import simulate
from magpolicy.schedule._schedule import Schedule

Outputs = list[NDArray[Any]]
STREAMS = ("cond", "uncond")


class RigStop(Exception):
    """Raised by a rig's loop where it was told to break off."""


class AdapterRig(Protocol):
    """One model of a host with an adapter, and how to run it."""

    tolerance: float
    """Relative rounding of the model's dtype, e.g. 1e-5 for float32."""
    # Three further attributes are optional: `batches = False` for a model that takes one sample a call, `resizes = False` for
    # one whose inputs have one size, `replaces = False` for an adapter that refuses to attach again. The checks that need these
    # are left out then.

    def attach(self, **settings: Any) -> Any:
        """Attach to the model; keyword arguments of :func:`magpolicy.attach`. Returns the handle."""
        ...

    def run(
        self,
        handle: Any,
        steps: int,
        *,
        streams: Sequence[str] = STREAMS,
        batched: bool = False,
        seed: int = 0,
        size: int = 8,
        size_from: tuple[int, int] | None = None,
        same_input: bool = False,
        stop_at: int | None = None,
    ) -> Outputs:
        """One run of ``steps`` steps; the model's output of every step and stream, step by step, streams in order.

        ``handle`` is ``None`` for the bare model. Inputs depend on ``seed``, step and stream alone. ``batched``: all streams in
        one call. ``size``: the number of tokens (or the resolution); ``size_from=(step, size)`` changes it midway.
        ``same_input``: every step has the first one's input and condition. ``stop_at``: raise :class:`RigStop` from
        within the model at that step, as a host's interruption would.
        """
        ...

    def blocks_run(self) -> int:
        """Block evaluations since last asked."""
        ...

    def traces(self) -> Any:
        """Whatever attaching could leave on the model (attributes, hooks, state keys), to compare."""
        ...

    def residuals_held(self, handle: Any) -> int:
        """Residuals the adapter holds now."""
        ...


NEVER = {"threshold": 0.0, "max_skips": 0, "retention": 0.0}
EAGER = {"threshold": 10.0, "max_skips": 2, "retention": 0.0}
MIXED = {"threshold": 0.08, "max_skips": 3, "retention": 0.2}


def check_adapter(make: Callable[[], AdapterRig]) -> tuple[str, ...]:
    """Run every check that the rig allows, each on a fresh one; returns their names.

    Raises:
        AssertionError: the adapter breaks a contract; the message names it.
    """
    rig = make()
    needs = {"batched streams apart": "batches", "another shape computes": "resizes", "attaching again": "replaces"}
    checks = {name: check for name, check in CHECKS.items() if getattr(rig, needs.get(name, ""), True)}
    for name, check in checks.items():
        try:
            check(make())
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error
    return tuple(checks)


def curve_for(steps: int) -> dict[str, list[float]]:
    """Ratios on which the streams decide differently, with steps near and far from 1."""
    wave = np.cos(np.arange(steps) * 1.3)
    return {
        "cond": [1.0, *(1 - 0.04 * (wave[1:] + 1) / 2).tolist()],
        "uncond": [1.0, *(1 + 0.06 * (wave[:-1] + 1) / 2).tolist()],
    }


def _transparent(rig: AdapterRig) -> None:
    before, plain = rig.traces(), rig.run(None, 4)
    with rig.attach(ratios=curve_for(4), **NEVER) as handle:
        _same(rig.run(handle, 4), plain, "a policy that never skips changes the output")
    assert rig.traces() == before, "detaching leaves traces"
    _same(rig.run(None, 4), plain, "the detached model's output changed")


def _attaching_again(rig: AdapterRig) -> None:
    before, ratios = rig.traces(), curve_for(6)
    first = rig.attach(ratios=ratios, **NEVER)
    expected = rig.run(first, 6)
    try:
        rig.attach(ratios=ratios, threshold=-1.0)
    except ArgumentError:
        _same(rig.run(first, 6), expected, "wrong settings took a handle's place")
    else:
        raise AssertionError("threshold=-1 was taken")
    second = rig.attach(ratios=ratios, **EAGER)
    first.detach()
    rig.run(second, 6)
    assert second.report.skipped, "the handle that was attached last does not decide"
    assert first.report.skipped == 0, "a handle that was replaced no longer tells its last run"
    second.detach()
    assert rig.traces() == before, "a handle that was replaced leaves traces"


def _exact(rig: AdapterRig) -> None:
    with rig.attach(ratios=[1.0] * 3, **EAGER) as handle:
        first, *skipped = rig.run(handle, 3, streams=("cond",), same_input=True)
        assert handle.report.computed == 1, "two steps should have been skipped"
        for output in skipped:
            _close(output, first, rig.tolerance, "a skip on the input just computed does not reproduce its output")


def _skips_run_no_blocks(rig: AdapterRig) -> None:
    rig.blocks_run()
    rig.run(None, 1, streams=("cond",))
    each = rig.blocks_run()
    with rig.attach(ratios=[1.0] * 6, **EAGER) as handle:
        rig.run(handle, 6, streams=("cond",))
        assert rig.blocks_run() == each * handle.report.computed, "blocks ran on a skipped step"
        assert handle.report.skipped > 0, "nothing was skipped"


def _as_simulated(rig: AdapterRig) -> None:
    for steps in (1, 2, 5, 12):
        for batched in (False, True) if getattr(rig, "batches", True) else (False,):
            for settings in (MIXED, EAGER):
                ratios = curve_for(steps)
                expected = simulate(ratios, batched=batched, **settings)  # type: ignore[arg-type]
                with rig.attach(ratios=ratios, **settings) as handle:
                    rig.run(handle, steps, batched=batched)
                    ran = Schedule.from_trace(handle.report.trace)
                assert ran == expected, f"{steps} steps, batched={batched}, {settings}: ran {ran}, simulated {expected}"


def _streams_apart(rig: AdapterRig) -> None:
    ratios = curve_for(8)
    with rig.attach(ratios=ratios, **MIXED) as handle:
        both = rig.run(handle, 8)
        for place, stream in enumerate(STREAMS):
            alone = rig.run(handle, 8, streams=(stream,))
            _same(both[place::2], alone, f"stream {stream!r} differs when another one runs beside it")


def _batched_streams_apart(rig: AdapterRig) -> None:
    mask = [1, 0, 0, 1, 0, 1]
    with rig.attach(schedule=Schedule.from_mask(mask)) as handle:
        separate = rig.run(handle, len(mask))
        batched = rig.run(handle, len(mask), batched=True)
    for one, other in zip(separate, batched, strict=True):
        _close(other, one, 10 * rig.tolerance, "streams in one call differ from the same streams in separate calls")


def _forecasts(rig: AdapterRig) -> None:
    """Coefficients of -1 take each difference back and leave an older residual; held in another run, it must do the same."""
    for order in (1, 2):
        computed = [1] * (order + 1)
        taken_back = Schedule.from_mask([*computed, 0], coefficients=[*([()] * len(computed)), (-1.0,) * order])
        with rig.attach(schedule=taken_back) as handle:
            found = rig.run(handle, order + 2)
        with rig.attach(schedule=Schedule.from_mask([1, *([0] * (order + 1))])) as handle:
            expected = rig.run(handle, order + 2)
        with rig.attach(schedule=taken_back, forecast="hold") as handle:
            held = rig.run(handle, order + 2)
        complaint = f"a forecast from {order + 1} residuals is not r_j + c1 (r_j - r_p) + c2 (r_p - r_q)"
        last = len(STREAMS)
        for one, other, last_held in zip(found[-last:], expected[-last:], held[-last:], strict=True):
            _close(one, other, 10 * rig.tolerance, complaint)
            assert not np.array_equal(last_held, other), "all residuals of the rig are alike; nothing is shown"


def _runs_are_fresh(rig: AdapterRig) -> None:
    ratios = curve_for(6)
    with rig.attach(ratios=ratios, **MIXED) as handle:
        expected = rig.run(handle, 6)
        trace = handle.report.trace
        for stop in (0, 1, 4):
            try:
                rig.run(handle, 6, seed=1, stop_at=stop)
            except RigStop:
                pass
            else:
                raise AssertionError("the rig did not stop; nothing is shown")
            assert rig.residuals_held(handle) == 0, f"residuals are held after an exception at step {stop}"
            _same(rig.run(handle, 6), expected, f"a run after an exception at step {stop} differs from a fresh one")
        if getattr(rig, "resizes", True):
            rig.run(handle, 6, seed=2, size=12)
        _same(rig.run(handle, 6), expected, "a run after one of another size differs from a fresh one")
        assert handle.report.trace == trace, "a repeated run decides differently"


def _other_shape_computes(rig: AdapterRig) -> None:
    with rig.attach(ratios=[1.0] * 4, threshold=10.0, max_skips=4, retention=0.0) as handle:
        outputs = rig.run(handle, 4, streams=("cond",), size_from=(2, 12))
        decisions = [entry.decision for entry in handle.report.trace]
    expected = [Decision.NO_RESIDUAL, Decision.REUSED, Decision.MISMATCH, Decision.REUSED]
    assert decisions == expected, f"another shape midway gave {decisions}, expected {expected}"
    _same(outputs[2:3], rig.run(None, 3, streams=("cond",), size_from=(2, 12))[2:], "the step of another shape is wrong")


def _frugal(rig: AdapterRig) -> None:
    with rig.attach(ratios=curve_for(6), **EAGER) as handle:
        held: list[int] = []
        with _at_each_decision(lambda: held.append(rig.residuals_held(handle))):
            rig.run(handle, 6)
        assert max(held) == len(STREAMS), f"{max(held)} residuals held for {len(STREAMS)} streams"
        assert rig.residuals_held(handle) == 0, "residuals are held after the run"


def _concurrent(rig: AdapterRig) -> None:
    with rig.attach(ratios=curve_for(6), **EAGER) as handle:
        expected = {seed: rig.run(handle, 6, seed=seed) for seed in range(3)}
        found: dict[int, Outputs] = {}
        threads = [threading.Thread(target=lambda s=seed: found.update({s: rig.run(handle, 6, seed=s)})) for seed in expected]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found.keys() == expected.keys(), "a concurrent run failed"
        for seed, outputs in expected.items():
            _same(found[seed], outputs, "concurrent runs see each other")


def _another_number_of_steps(rig: AdapterRig) -> None:
    from magpolicy.policy._curve import Curve

    curve = Curve(curve_for(10))
    with rig.attach(curve=curve, **MIXED) as handle:
        for steps in (10, 4, 17):
            rig.run(handle, steps)
            ran, expected = Schedule.from_trace(handle.report.trace), simulate(curve, steps=steps, **MIXED)  # type: ignore[arg-type]
            assert ran == expected, f"{steps} steps: ran {ran}, simulated {expected}"


@contextlib.contextmanager
def _at_each_decision(then: Callable[[], None]) -> Iterator[None]:
    """Inside, ``then()`` is called at each final decision."""

    class Observer:
        @hookimpl
        def on_decision(self) -> None:
            then()

    observer = Observer()
    manager().register(observer)
    try:
        yield
    finally:
        manager().unregister(observer)


def _same(found: Sequence[NDArray[Any]], expected: Sequence[NDArray[Any]], complaint: str) -> None:
    assert len(found) == len(expected), complaint
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one, other), complaint


def _close(found: NDArray[Any], expected: NDArray[Any], tolerance: float, complaint: str) -> None:
    scale = max(float(np.abs(expected).max()), 1e-30)
    worst = float(np.abs(found - expected).max()) / scale
    assert worst <= tolerance, f"{complaint} (relative difference {worst:.2g}, allowed {tolerance:.2g})"


CHECKS: dict[str, Callable[[AdapterRig], None]] = {
    "transparent": _transparent,
    "attaching again": _attaching_again,
    "exact": _exact,
    "skips run no blocks": _skips_run_no_blocks,
    "as simulated": _as_simulated,
    "another number of steps": _another_number_of_steps,
    "streams apart": _streams_apart,
    "batched streams apart": _batched_streams_apart,
    "forecasts": _forecasts,
    "runs are fresh": _runs_are_fresh,
    "another shape computes": _other_shape_computes,
    "frugal": _frugal,
    "concurrent": _concurrent,
}
