"""What the prior's norms are worth, by the published tables alone: ``python -m benchmarks.quality.surrogates``. No model is
needed.

A surrogate of a model is a path of residuals with the prior's directions and the norms of the model's published table. Each
plan is judged by the root mean square, over its skipped steps and streams, of the relative error its forecasts have on that
path. That is open loop: nobody answers to the errors made before.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

import numpy as np
from attrs import evolve

import magpolicy
from magpolicy.calibration._prior import DIRECTIONS, Directions, prior_calibration

STEPS, BUDGETS = 28, (14, 9)
FALLING = 0.35
"""What the norm of the lab's models falls to over a run."""
SHOWN = ("wan2.1-t2v-1.3b", "flux.1-dev", "hunyuanvideo-t2v-720p", "qwen-image", "flux.2-vllm-omni")


def falling(levels: Sequence[float], end: float = FALLING) -> magpolicy.Curve:
    """Ratios of a norm that falls by the same factor over each stretch of noise level."""
    return magpolicy.Curve(np.exp(np.log(end) * -np.diff(levels, prepend=levels[0])).tolist(), sigmas=levels)


def levels_of(curve: magpolicy.Curve, steps: int = STEPS) -> tuple[float, ...]:
    """The levels of a run on the table's own schedule, those that it covers."""
    levels = curve.levels_for(steps)
    return tuple(s for s, inside in zip(levels, curve.covers(levels), strict=True) if inside)


def rms_error(truth: magpolicy.Calibration, schedule: magpolicy.Schedule) -> float:
    """Root mean square of the relative errors of skipped steps, over all streams."""
    errors = magpolicy.expected_errors(truth, schedule, sigmas=truth.sigmas)
    skipped = [e for row in errors.values() for e, computes in zip(row, schedule.mask, strict=True) if not computes]
    return float(np.sqrt(np.mean(np.square(skipped)))) if skipped else 0.0


def held(schedule: magpolicy.Schedule) -> magpolicy.Schedule:
    """The same steps, residuals held."""
    return magpolicy.Schedule.from_mask(dict(zip(schedule.streams, schedule.masks, strict=True)))


def row(curve: magpolicy.Curve, computed: int, directions: Directions = DIRECTIONS) -> dict[str, float]:
    """The errors of each way to plan a run of the model that a table is of; ``directions``: how it really turns."""
    curve = magpolicy.Curve(curve.ratios, sigmas=curve.levels, first_step=curve.first_step)  # read by level, not by share
    levels = levels_of(curve)
    truth = prior_calibration(curve, levels=levels, directions=directions)
    streams = curve.streams
    steps = min(len(levels), round(computed * len(levels) / STEPS))

    def plan(source: magpolicy.Calibration) -> magpolicy.Schedule:
        return magpolicy.plan(source, computed=steps)

    known = plan(prior_calibration(curve, levels=levels))
    constant = plan(prior_calibration(None, levels=levels, streams=streams))
    small = plan(prior_calibration(falling(levels), levels=levels, streams=streams))
    rule = magpolicy.plan(curve, sigmas=levels, computed=steps, forecast="hold", max_skips=6)
    return {
        "with its norms": rms_error(truth, known),
        "falling norms": rms_error(truth, small),
        "constant norms": rms_error(truth, constant),
        "residual held": rms_error(truth, rule),
        "same steps, held": rms_error(truth, held(known)),
        "constant, same steps held": rms_error(truth, held(constant)),
    }


def rows(computed: int, directions: Directions = DIRECTIONS) -> Iterator[tuple[str, dict[str, float]]]:
    for name in magpolicy.presets():
        yield name, row(magpolicy.preset(name).curve, computed, directions)


def two_experts() -> None:
    """Tables of two experts at their own steps: plans of constant norms that know of the change, and that do not."""
    for name in magpolicy.presets():
        curve = magpolicy.preset(name).curve
        if magpolicy.preset(name).expert_boundary is None:
            continue
        ratios = curve.of(curve.streams[0])
        switch = int(np.argmin(ratios[: int(0.8 * len(ratios))]))
        truth = prior_calibration(magpolicy.Curve(curve.ratios, sigmas=curve.levels), levels=curve.levels)
        for part in (2, 3):
            errors = []
            for step in (switch, None):
                source = prior_calibration(None, levels=curve.levels, streams=curve.streams, expert_step=step)
                schedule = magpolicy.plan(source, computed=len(curve.levels) // part)
                errors += [rms_error(truth, schedule), rms_error(truth, held(schedule))]
            known, known_held, unknown, unknown_held = errors
            print(f"{name}, 1/{part}: {known:.3f} (held {known_held:.3f}); else {unknown:.3f} (held {unknown_held:.3f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help="print every table")
    options = parser.parse_args()
    two_experts()
    turns = {"": DIRECTIONS, ", turning half as quickly": evolve(DIRECTIONS, scale=2 * DIRECTIONS.scale),
             ", turning twice as quickly": evolve(DIRECTIONS, scale=DIRECTIONS.scale / 2)}  # fmt: skip
    for computed in BUDGETS:
        for words, directions in turns.items():
            found = dict(rows(computed, directions))
            names = list(next(iter(found.values())))
            print(f"\n{computed} of {STEPS}{words} | " + " | ".join(names))
            for name, errors in found.items():
                if options.all or name in SHOWN:
                    print(f"{name} | " + " | ".join(f"{errors[n]:.3f}" for n in names))
            print("median | " + " | ".join(f"{np.median([e[n] for e in found.values()]):.3f}" for n in names))
            pairs = (("with its norms", "same steps, held"), ("constant norms", "constant, same steps held"))
            worst = [max(errors[a] / errors[b] for errors in found.values()) for a, b in pairs]
            print(f"largest share of holding the same steps: {worst[0]:.2f} with its norms, {worst[1]:.2f} with constant ones")


if __name__ == "__main__":
    main()
