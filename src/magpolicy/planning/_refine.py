"""Deep calibration: candidate plans are run once each on the calibration sample, the best kept and improved."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from attrs import evolve, field, frozen

from magpolicy import _checks
from magpolicy._errors import ArgumentError
from magpolicy._keywords import suggests
from magpolicy.catalog._source import Source
from magpolicy.planning._local_search import evenly, neighbours
from magpolicy.planning._objective import OBJECTIVES
from magpolicy.planning._planned_schedule import joint_schedule
from magpolicy.planning._planner import solve
from magpolicy.planning._problem import PlanProblem, PlanRequest
from magpolicy.planning._skip_costs import ranking
from magpolicy.planning._target import PlanTarget
from magpolicy.schedule._schedule import Schedule

Run = Callable[[Schedule], float]
Progress = Callable[[int, int, Schedule, float], None]


@frozen
class Refined:
    """For each number of computed steps, the best schedule that was run, and its error."""

    __module__ = "magpolicy"

    budgets: tuple[int, ...]
    """Computed steps allowed, rising."""
    schedules: tuple[Schedule, ...]
    """For each budget the best schedule of at most so many computed steps."""
    errors: tuple[float, ...]
    """What running each gave; never rising."""
    runs: int
    """Runs made."""
    tried: tuple[tuple[Schedule, float], ...] = field(repr=False)
    """Every schedule run, with its error, in order."""

    @property
    def best(self) -> Schedule:
        """The schedule with the most computed steps."""
        return self.schedules[-1]


@suggests
def refine(
    source: Source,
    run: Run,
    *,
    computed: int | Iterable[int] | None = None,
    speedup: float | str | Iterable[float | str] | None = None,
    runs: int = 40,
    steps: int | None = None,
    sigmas: Sequence[float] | None = None,
    max_skips: int | None = None,
    retention: float | None = None,
    forced: Iterable[int] | None = None,
    forecast: str | None = None,
    damping: float | None = None,
    guidance: float | Mapping[str, float] | None = None,
    objectives: Sequence[str] = ("latent", "gap", "trajectory", "relative"),
    progress: Progress | None = None,
) -> Refined:
    """Run schedules on the sample that the model was calibrated on, and return the best.

    It runs the plans of several objectives, with and without the last step computed, evenly spaced steps, and the best schedule
    of the next smaller number of computed steps with one step added. Then it moves single computed steps of the best. More
    computed steps are never worse than fewer: if no such schedule is better, the one with fewer steps is returned.

    Args:
        source: a calibration, as for :func:`magpolicy.plan`; so are the settings not listed here.
        run: a function that generates with a schedule, on the calibration sample, and returns the error, e.g. the mean squared
            difference from the full run; less is better, nan is worst.
        computed: the number of computed steps, or several.
        speedup: or the speedup, or several.
        runs: how many runs are allowed for all numbers of steps together.
        objectives: objectives of :func:`magpolicy.plan` that give candidates.
        progress: a function that is called after each run with: runs made, runs allowed, the schedule, its error.

    Raises:
        ArgumentError: before any run, if an argument is out of range or no schedule has that number of steps. Afterwards, if no
            run gave a number.
    """
    settings = PlanTarget(
        max_skips=max_skips, retention=retention, forced=forced, forecast=forecast, damping=damping, guidance=guidance
    )
    problem = PlanRequest(source=source, target=settings, steps=steps, sigmas=sigmas).problem()
    targets = sorted(_targets(settings, computed, speedup), key=lambda target: _size(target, problem))
    for target in targets:
        solve(problem, target)  # what cannot be had is said before the first run
    allowed = _checks.whole("runs", runs, len(targets), example=str(max(40, len(targets))))
    for name in objectives:
        _checks.one_of("objectives", name, tuple(OBJECTIVES))
    search = _Search(problem, run, allowed, progress)
    for number, target in enumerate(targets):
        share = (allowed - search.made) // (len(targets) - number)
        search.budget(target, tuple(objectives), share)
    return search.result()


def _targets(
    settings: PlanTarget, computed: int | Iterable[int] | None, speedup: float | str | Iterable[float | str] | None
) -> list[PlanTarget]:
    if (computed is None) == (speedup is None):
        raise ArgumentError("computed and speedup: pass one of them; try speedup=[2.0, 3.0]")
    targets = [evolve(settings, computed=value) for value in _several(computed)]
    targets += [evolve(settings, speedup=value) for value in _several(speedup)]
    if not targets:
        raise ArgumentError("computed=[] and speedup=[] ask for nothing; try speedup=[2.0, 3.0]")
    return targets


def _size(target: PlanTarget, problem: PlanProblem) -> int:
    """Computed steps that a target allows."""
    size = target.budget(problem.count)
    assert size is not None  # none has a bound on the error
    return size


def _several(values: Any) -> tuple[Any, ...]:
    if values is None:
        return ()
    return tuple(values) if isinstance(values, Iterable) and not isinstance(values, str) else (values,)


@frozen
class _Choice:
    """The best that was found for a budget."""

    budget: int
    computed: tuple[int, ...]
    """The evaluations that compute."""
    error: float
    """What running it gave."""


class _Search:
    """The runs made so far and what came out best."""

    def __init__(self, problem: PlanProblem, run: Run, allowed: int, progress: Progress | None) -> None:
        self._problem, self._run, self._allowed, self._progress = problem, run, allowed, progress
        self._costs = ranking(problem)
        self._measured: dict[tuple[int, ...], float] = {}
        self._tried: list[tuple[Schedule, float]] = []
        self._best: list[_Choice] = []  # one a budget

    @property
    def made(self) -> int:
        """Runs made."""
        return len(self._tried)

    def budget(self, target: PlanTarget, objectives: Sequence[str], share: int) -> None:
        """The best for one budget, in ``share`` runs; budgets come in rising order."""
        size, stop = _size(target, self._problem), self.made + share
        best = evolve(self._best[-1], budget=size) if self._best else _Choice(size, (), math.inf)
        for candidate in self._proposals(target, size, objectives):
            allowed = math.isfinite(self._costs(candidate))
            if allowed and self.made < stop and (error := self._error(candidate)) < best.error:
                best = _Choice(size, candidate, error)
        if not best.computed:
            raise ArgumentError("run gave no number for any schedule; it must return an error, less is better")
        better: _Choice | None = best
        while better is not None:
            best, better = better, self._better_neighbour(better, stop)
        self._best.append(best)

    def _better_neighbour(self, choice: _Choice, stop: int) -> _Choice | None:
        """The first neighbour with a smaller error; ``None`` if there is none, or ``stop`` runs are made before it is found."""
        for candidate in self._moves(choice.computed):
            if self.made >= stop:
                return None
            if (error := self._error(candidate)) < choice.error:
                return _Choice(choice.budget, candidate, error)
        return None

    def _proposals(self, target: PlanTarget, size: int, objectives: Sequence[str]) -> Iterator[tuple[int, ...]]:
        """Plans, the last budget's best with steps added, plans that compute the last step, and evenly spaced steps."""
        count, must = self._problem.count, self._problem.must_compute
        for name in objectives:
            yield _computed(solve(self._problem, evolve(target, objective=name)))
        if self._best:
            yield self._grown(self._best[-1].computed, size)
        with_last = evolve(self._problem, must_compute=must | {count - 1})
        with contextlib.suppress(ArgumentError):  # no room for the last step
            for name in objectives:
                yield _computed(solve(with_last, evolve(target, objective=name)))
        even = evenly(count, size)
        if must.issubset(even):
            yield even

    def _grown(self, computed: tuple[int, ...], size: int) -> tuple[int, ...]:
        """``computed`` with steps added one by one where the expected cost falls most."""
        for _ in range(size - len(computed)):
            wider = [tuple(sorted((*computed, i))) for i in range(self._problem.count) if i not in computed]
            computed = min(wider, key=self._costs)
        return computed

    def _moves(self, computed: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Neighbours, those expected to cost least first."""
        near = {c: self._costs(c) for c in neighbours(computed, self._problem.count) if self._problem.must_compute.issubset(c)}
        return sorted((c for c, cost in near.items() if math.isfinite(cost)), key=near.__getitem__)

    def _error(self, computed: tuple[int, ...]) -> float:
        """What running it gives; nothing is run twice."""
        if computed not in self._measured:
            schedule = joint_schedule(self._problem, computed)
            error = float(self._run(schedule))
            self._measured[computed] = math.inf if math.isnan(error) else error
            self._tried.append((schedule, error))
            if self._progress is not None:
                self._progress(self.made, self._allowed, schedule, error)
        return self._measured[computed]

    def result(self) -> Refined:
        """What was found."""
        return Refined(
            budgets=tuple(best.budget for best in self._best),
            schedules=tuple(joint_schedule(self._problem, best.computed) for best in self._best),
            errors=tuple(best.error for best in self._best),
            runs=self.made,
            tried=tuple(self._tried),
        )


def _computed(schedule: Schedule) -> tuple[int, ...]:
    return tuple(i for i, computes in enumerate(schedule.mask) if computes)
