"""Previewing a run: the schedule settings give, and tables of settings."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat

from attrs import evolve, frozen

from magpolicy import _checks
from magpolicy._keywords import suggests
from magpolicy.catalog._source import Source
from magpolicy.policy._decision import Decision
from magpolicy.policy._policy import Policy, check_rule, decide_together, settle_together
from magpolicy.policy._semantics import Semantics
from magpolicy.run._config import RunConfig
from magpolicy.run._resolve import resolve
from magpolicy.run._rule import Rule
from magpolicy.schedule._schedule import Schedule


@suggests
def simulate(
    source: Source,
    *,
    steps: int | None = None,
    sigmas: Sequence[float] | None = None,
    threshold: float | None = None,
    max_skips: int | None = None,
    retention: float | None = None,
    start_step: int = 0,
    end_step: int | None = None,
    forced: Iterable[int] | None = None,
    semantics: str | Semantics | None = None,
    expert_step: int | None = None,
    batched: bool | None = None,
    part: tuple[int, int] | None = None,
    forecast: str | None = None,
    damping: float | None = None,
) -> Schedule:
    """The schedule a run will follow, without a model.

    >>> import magpolicy
    >>> print(magpolicy.simulate("flux.1-dev", steps=20))
    20 steps ██·█··█·····█·····█·  6 computed  3.33x

    Args:
        source: a sequence of ratios, a mapping from stream to one, a :class:`magpolicy.Curve`, a
            :class:`magpolicy.Preset` or a preset's name, alias or file.
        steps: steps of the run; the calibrated number by default.
        sigmas: or the noise levels of its evaluations (second-order samplers have more than one a step).
        threshold: bound on the accumulated error; a preset brings its own.
        max_skips: K, how many steps in a row may be skipped; a preset brings its own.
        retention: leading share of the run that is always computed, 0 to 1; a preset brings its own.
        start_step: first step that may be skipped.
        end_step: last step that may be skipped (inclusive; negative counts from the end).
        forced: steps that are always computed.
        semantics: which implementation's reading of the table, and rule: a name from :func:`magpolicy.semantics_names`.
        expert_step: first step of the second expert of a two-expert model; a preset brings its own.
        batched: whether one call evaluates all streams, so that they are decided jointly; by default as the semantics say.
        part: first and last-but-one position, for a run of part of the steps (img2img, a later stage): the schedule
            covers those steps only, the positions stay those of the whole run.
        forecast: how a skipped step's residual is made: ``"hold"`` (the default) reuses the last computed one, ``"linear"``
            extrapolates the last two over noise level, ``"calibrated"`` as a :class:`magpolicy.Calibration` says is closest.
        damping: factor on the linear forecast, 0 to 1.

    Raises:
        ArgumentError: an argument is missing, unknown or out of range.
    """
    config = resolve(
        source,
        threshold=threshold,
        max_skips=max_skips,
        retention=retention,
        start_step=start_step,
        end_step=end_step,
        forced=forced,
        semantics=semantics,
        expert_step=expert_step,
        forecast=forecast,
        damping=damping,
    )
    return simulate_config(config, steps, sigmas, batched, part)


def simulate_config(
    config: RunConfig,
    steps: int | None = None,
    sigmas: Sequence[float] | None = None,
    batched: bool | None = None,
    part: tuple[int, int] | None = None,
) -> Schedule:
    """Like :func:`simulate`, for settings that were checked before."""
    length, levels = config.length(steps, sigmas)
    first, stop = _checks.part(part, length)
    run = config.prepare(length, levels, first)
    policies = list(map(run.policy, config.streams))
    for policy in policies:
        policy.reset(first)
    if len(policies) > 1 and (config.batched if batched is None else batched):
        rows = _together(policies, config.joint, stop - first)
    else:
        rows = [_alone(policy, stop - first) for policy in policies]
    masks = tuple([tuple([decision.computes for decision in decisions]) for decisions, _ in rows])
    return Schedule(
        streams=config.streams,
        masks=masks,
        decisions=tuple([tuple(decisions) for decisions, _ in rows]),
        modelled=tuple([tuple(errors) for _, errors in rows]),
        first_step=first,
        coefficients=tuple(map(run.forecast.along, config.streams, masks, repeat(first))),
        sigmas=None if levels is None else levels[first:stop],
    )


_Row = tuple[list[Decision], list[float]]
"""Of one stream, per step, what was decided, and the error a skip was tested with."""


def _alone(policy: Policy, count: int) -> _Row:
    """A stream that is evaluated by itself: the common case, and the one a sweep repeats."""
    decisions, errors = [], []
    propose, settle = policy.propose, policy.settle
    for _ in range(count):
        decision = propose()
        errors.append(policy.tested_error if decision.skip else 0.0)
        settle(decision)
        decisions.append(decision)
    return decisions, errors


def _together(policies: Sequence[Policy], joint: str, count: int) -> list[_Row]:
    """Streams that are evaluated in one call."""
    rows: list[_Row] = [([], []) for _ in policies]
    for _ in range(count):
        proposed, decided, tested = decide_together(policies, joint)
        settle_together(policies, proposed, decided)
        for (decisions, errors), decision, error in zip(rows, decided, tested, strict=True):
            decisions.append(decision)
            errors.append(error if decision.skip else 0.0)
    return rows


@frozen
class SweepRow:
    """Settings, and the schedule that they give."""

    __module__ = "magpolicy"

    threshold: float
    max_skips: int
    retention: float
    schedule: Schedule

    @property
    def computed(self) -> int:
        """Steps that compute."""
        return self.schedule.computed

    @property
    def error(self) -> float:
        """Modelled error of the run (:attr:`magpolicy.Schedule.error`)."""
        return self.schedule.error

    @property
    def speedup(self) -> float:
        """Evaluations over computed evaluations."""
        return self.schedule.speedup


@frozen
class Sweep:
    """A table of settings, in the order they were tried."""

    __module__ = "magpolicy"

    rows: tuple[SweepRow, ...]

    def __iter__(self) -> Iterator[SweepRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def front(self) -> tuple[SweepRow, ...]:
        """The Pareto front: rows that no other beats in both computed steps and modelled error, fewest steps first."""
        best: list[SweepRow] = []
        for row in sorted(self.rows, key=lambda row: (row.computed, row.error)):
            if not best or row.error < best[-1].error:
                best.append(row)
        return tuple(best)


@suggests
def sweep(
    source: Source,
    *,
    thresholds: Iterable[float],
    max_skips: Iterable[int],
    retentions: Iterable[float],
    steps: int | None = None,
    sigmas: Sequence[float] | None = None,
    start_step: int = 0,
    end_step: int | None = None,
    forced: Iterable[int] | None = None,
    semantics: str | Semantics | None = None,
    expert_step: int | None = None,
    batched: bool | None = None,
) -> Sweep:
    """Simulate every combination of thresholds, K and retentions; see :func:`simulate` for the rest.

    >>> import magpolicy
    >>> table = magpolicy.sweep("flux.1-dev", thresholds=[0.06, 0.12, 0.24], max_skips=[2, 5], retentions=[0.1])
    >>> [(row.threshold, row.max_skips, row.computed) for row in table.front()]  # doctest: +ELLIPSIS
    [(0.24, 5, ...), ...]

    Raises:
        ArgumentError: an argument is missing, unknown or out of range.
    """
    thresholds = _checks.listed("thresholds", thresholds, "thresholds")
    all_skips = _checks.listed("max_skips", max_skips, "counts")
    forced = None if forced is None else _checks.listed("forced", forced, "steps")
    rows = []
    for retention in _checks.listed("retentions", retentions, "shares"):
        config = resolve(
            source,
            threshold=0.0,
            max_skips=0,
            retention=retention,
            start_step=start_step,
            end_step=end_step,
            forced=forced,
            semantics=semantics,
            expert_step=expert_step,
        )
        assert isinstance(config, Rule)  # nothing else takes a threshold
        for threshold, skips in itertools.product(thresholds, all_skips):
            limit, most = check_rule(threshold, skips)
            schedule = simulate_config(evolve(config, threshold=limit, max_skips=most), steps, sigmas, batched)
            rows.append(SweepRow(limit, most, retention, schedule))
    return Sweep(tuple(rows))
