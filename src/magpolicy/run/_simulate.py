"""Previewing a run: the schedule settings give, and tables of settings."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

from attrs import evolve, frozen

from magpolicy import _checks
from magpolicy.calibration._forecast import along
from magpolicy.catalog._source import Source
from magpolicy.policy._decision import Decision
from magpolicy.policy._policy import Policy, check_rule, decide_together, settle_together
from magpolicy.policy._semantics import Semantics
from magpolicy.run._config import RunConfig, resolve
from magpolicy.schedule._schedule import Schedule


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
        max_skips: K, longest run of consecutive skips; a preset brings its own.
        retention: leading share of the run that is always computed, 0 to 1; a preset brings its own.
        start_step: first step that may be skipped.
        end_step: last step that may be skipped (inclusive; negative counts from the end).
        forced: steps that are always computed.
        semantics: whose reading of the table and the rule: a name from :func:`magpolicy.semantics_names`.
        expert_step: first step of the second expert of a two-expert model; a preset brings its own.
        batched: whether the streams are evaluated in one call and so decided jointly; as the semantics do by default.
        part: first and last-but-one position, for a run of part of the steps (img2img, a later stage): the schedule
            covers those steps only, the positions stay those of the whole run.
        forecast: how a skipped step's residual is made: ``"hold"`` (the default) reuses the last computed one, ``"linear"``
            extrapolates the last two over noise level, ``"calibrated"`` as a :class:`magpolicy.Calibration` says is closest.
        damping: factor on the linear forecast, 0 to 1.

    Raises:
        ArgumentError: an argument is missing, unknown or out of range.
    """
    setup = resolve(
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
    return _run(setup, steps, sigmas, batched, part)


def _run(
    setup: RunConfig, steps: int | None, sigmas: Sequence[float] | None, batched: bool | None, part: tuple[int, int] | None
) -> Schedule:
    length, levels = setup.length(steps, sigmas)
    first, stop = _checks.part(part, length)
    make = setup.policies(length, levels)
    policies = [make(name) for name in setup.streams]
    for policy in policies:
        policy.reset(first)
    together = setup.how.batched if batched is None else batched
    groups = [policies] if together else [[policy] for policy in policies]
    rows = [row for group in groups for row in _decisions(group, setup.how.joint, stop - first)]
    named = dict(zip(setup.streams, rows, strict=True))
    forecaster = setup.forecaster(length, levels)
    coefficients = {name: along(forecaster, name, [d.computes for d, _ in row], first) for name, row in named.items()}
    return Schedule.from_decisions(named, first_step=first, coefficients=coefficients)


_Row = list[tuple[Decision, float]]


def _decisions(policies: list[Policy], joint: str, count: int) -> list[_Row]:
    rows: list[_Row] = [[] for _ in policies]
    if len(policies) == 1:  # the common case, and the one a sweep repeats
        policy, row = policies[0], rows[0]
        for _ in range(count):
            decision = policy.propose()
            row.append((decision, policy.tested_error))
            policy.settle(decision)
        return rows
    for _ in range(count):
        proposed, decided, errors = decide_together(policies, joint)
        settle_together(policies, proposed, decided)
        for row, decision, error in zip(rows, decided, errors, strict=True):
            row.append((decision, error))
    return rows


@frozen
class SweepRow:
    """Settings and what they give."""

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
        base = resolve(
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
        for threshold, skips in itertools.product(thresholds, all_skips):
            rule = check_rule(threshold, skips)
            rows.append(SweepRow(*rule, retention, _run(evolve(base, rule=rule), steps, sigmas, batched, None)))
    return Sweep(tuple(rows))
