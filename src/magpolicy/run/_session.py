"""One run: keyed streams that are decided together where they are evaluated together, and what was decided."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

from attrs import define, evolve

from magpolicy import _checks
from magpolicy._errors import ArgumentError, RunError
from magpolicy.calibration._forecast import History, Planned, computed_after
from magpolicy.catalog._source import Source
from magpolicy.planning._safeguard import Replan, Safeguard, safeguard_of
from magpolicy.policy._curve import SINGLE
from magpolicy.policy._decision import Decision
from magpolicy.policy._policy import Policy, decide_together, settle_together
from magpolicy.policy._semantics import Semantics
from magpolicy.run._config import RunConfig, following, resolve
from magpolicy.schedule._coefficients import Check, Coefficients
from magpolicy.schedule._schedule import Schedule
from magpolicy.schedule._trace import TraceEntry


@define  # and not frozen, which would take three times as long to make: one is made at every evaluation
class _Pending:
    streams: tuple[str, ...]
    policies: tuple[Policy, ...]
    proposed: Sequence[Decision]
    decided: Sequence[Decision]
    errors: Sequence[float]
    step: int
    sigma: float | None


class Session:
    """A run's policies, one per stream, made as the streams appear.

    >>> import magpolicy
    >>> with magpolicy.Session([1.0, 1.01, 1.0, 0.99], threshold=0.05, max_skips=2, retention=0.25) as session:
    ...     for step in range(4):
    ...         decision = session.decide("cond")
    ...         # compute or reuse, then
    ...         session.commit()
    >>> print(magpolicy.Schedule.from_trace(session.trace))
    4 steps █··█  2 computed  2.00x

    A call that holds several streams (conditions batched together) takes one decision: ``session.decide(["cond", "uncond"])``
    skips only if every stream's own test passes; each stream keeps its own accumulators. Arguments are those of
    :func:`magpolicy.simulate`; ``source`` may also be a :class:`magpolicy.Schedule`, which is then followed.

    With one of ``speedup``, ``computed`` and ``error`` (and ``objective`` and ``guidance``, as in :func:`magpolicy.plan`) the
    run is planned, again for each beginning; ``.schedule`` is the plan. ``safeguard`` (``True``, a margin, or a
    :class:`magpolicy.Safeguard`) has the run compared with its plan.

    Not for use from several threads at once: one session is one run.
    """

    def __init__(
        self,
        source: Source | Schedule,
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
        forecast: str | None = None,
        damping: float | None = None,
        speedup: float | None = None,
        computed: int | None = None,
        error: float | None = None,
        objective: str | None = None,
        guidance: float | Mapping[str, float] | None = None,
        safeguard: float | bool | Safeguard | None = None,
    ) -> None:
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
            speedup=speedup,
            computed=computed,
            error=error,
            objective=objective,
            guidance=guidance,
        )
        self._prepare(setup, steps, sigmas, safeguard)

    @classmethod
    def from_setup(
        cls,
        setup: RunConfig,
        steps: int | None,
        sigmas: Sequence[float] | None,
        safeguard: float | bool | Safeguard | None = None,
    ) -> Session:
        """A session of a setup that was checked before."""
        session = cls.__new__(cls)
        session._prepare(setup, steps, sigmas, safeguard)
        return session

    def _prepare(
        self, setup: RunConfig, steps: int | None, sigmas: Sequence[float] | None, safeguard: float | bool | Safeguard | None
    ) -> None:
        self.steps, self.sigmas = setup.length(steps, sigmas)
        self._setup = setup
        self._joint = setup.how.joint
        self._guarded = safeguard
        self._guard: Safeguard | None = None
        self._replans: list[Replan] = []
        self._lay_out(setup.schedule.first_step if setup.schedule is not None else 0)
        self._computed: dict[str, History] = {}  # per stream
        self._calls: dict[tuple[str, ...], None] = {}  # streams evaluated together, the latest last
        self._policies: dict[str, Policy] = {}
        self._pending: _Pending | None = None
        self._trace: list[TraceEntry] = []
        self._noted: list[tuple[Any, ...]] = []  # what is to be added to it: an entry takes as long to make as a decision
        self._on_end: list[Callable[[], None]] = []
        self._first = 0
        self.active = False

    def _lay_out(self, first: int) -> None:
        """Settle what this run does, which begins at ``first``."""
        planned_from = first if self._setup.goal is not None else 0
        self._make = self._setup.policies(self.steps, self.sigmas, planned_from)
        self._forecast = self._setup.forecaster(self.steps, self.sigmas, planned_from)
        self.schedule = self._setup.planned(self.steps, self.sigmas, planned_from)
        self._replans.clear()
        request = self._setup.plan_request(self.steps, self.sigmas, planned_from) if self._guarded else None
        self._guard = None if self.schedule is None else safeguard_of(self._guarded, self.schedule, request)
        self._laid = planned_from

    def begin(self, step: int = 0) -> Session:
        """Begin the run, at position ``step`` of it; streams and trace start empty.

        Raises:
            RunError: a run is under way already.
            ArgumentError: ``step`` lies outside the run.
        """
        if self.active:
            raise RunError("begin(): a run is under way already; call end() first, or use another Session")
        if _checks.whole("step", step, 0, example="0") >= self.steps:
            raise ArgumentError(f"step={step} lies outside this run of {self.steps} steps; use 0 to {self.steps - 1}")
        if self._replans or (self._setup.goal is not None and step != self._laid):
            self._lay_out(step)
        self._policies.clear()
        self._computed.clear()
        self._calls.clear()
        self._trace.clear()
        self._noted.clear()
        self._pending, self._first, self.active = None, step, True
        from magpolicy.plugin_system._registry import (
            Observers,  # late: looking for plugins costs more than the rest of the import
        )

        self._observers = Observers()
        self._observers.tell("on_run_start", session=self)
        return self

    def decide(
        self, stream: Hashable | Sequence[Hashable] = SINGLE, *, step: int | None = None, sigma: float | None = None
    ) -> Decision:
        """Decide the next evaluation of one stream, or of several that are evaluated in one call.

        Args:
            stream: a stream's name (anything hashable; kept as text), or a list of names for one batched call.
            step: position in the run, where streams may sit steps out; by default the stream's next one.
            sigma: noise level for the trace; by default the one the session was given for that step.

        Returns:
            the call's decision. :meth:`commit` must follow before the next one.

        Raises:
            RunError: no run is under way, the last decision is not committed, or the stream's run is over.
        """
        if not self.active:
            raise RunError("decide(): no run is under way; call begin(), or use the session in a with block")
        if self._pending is not None:
            raise RunError(f"decide(): step {self._pending.step} is not committed; call commit() after each decision")
        names = tuple(map(str, stream)) if isinstance(stream, list | tuple) else (str(stream),)
        if not names or len(set(names)) < len(names):
            raise ArgumentError(f"stream={stream!r} must name at least one stream, each once")
        policies = tuple(map(self._policy, names))
        if step is None:
            step = max([policy.step for policy in policies])
        elif (step := _checks.whole("step", step, 0, example="0")) > self.steps - 1:
            raise RunError(f"step={step} lies past this run's {self.steps} steps; begin another run")
        elif step < self._first:
            raise RunError(f"step={step} lies before this run's first step {self._first}; begin another run")
        proposed, decided, errors = decide_together(policies, self._joint, step)
        if sigma is None and self.sigmas is not None:
            sigma = self.sigmas[step]
        self._pending = _Pending(names, policies, proposed, decided, errors, step, sigma)
        if len(decided) == 1:
            return decided[0]
        return next((d for d in decided if not d.skip and d is not Decision.JOINT), decided[0])

    def commit(self, revised: Decision | None = None) -> None:
        """Make the decision final.

        Args:
            revised: the reason why a skip was computed after all, e.g. ``Decision.NO_RESIDUAL`` from an adapter that has
                none of that shape. The accumulators then start afresh, as after any computed step.

        Raises:
            RunError: nothing was decided, or a computed evaluation is to be revised to a skip.
        """
        pending = self._pending
        if pending is None:
            raise RunError("commit(): nothing is decided; call decide() first")
        if revised is not None and not revised.computes:
            raise RunError(f"commit({revised}): a decision can only be revised to compute; pass a reason that computes")
        decided = pending.decided
        if revised is not None and decided[0].skip:
            decided = [revised] * len(decided)
        settle_together(pending.policies, pending.proposed, decided)
        self._pending = None
        self._calls.pop(pending.streams, None)
        self._calls[pending.streams] = None
        for name, policy, decision, error in zip(pending.streams, pending.policies, decided, pending.errors, strict=True):
            ratio = float(policy.accumulated_ratio)
            forecast = self._forecast.coefficients(name, self._computed.get(name, ()), pending.step) if decision.skip else ()
            self._noted.append((pending.step, name, pending.sigma, decision, ratio, error, policy.skips, forecast))
            if decision.computes:
                self._computed[name] = computed_after(self._computed.get(name, ()), pending.step)
            if self._observers.any:
                self._observers.tell("on_decision", session=self, entry=self.trace[-1])

    def cancel(self) -> None:
        """Forget a decision that was not carried out (the model raised); the step is decided again next time."""
        if self._pending is not None:
            for policy in self._pending.policies:
                policy.forget()
            self._pending = None

    def end(self) -> None:
        """End the run, early or not; calling it again does nothing. The trace stays."""
        if not self.active:
            return
        self.active, self._pending = False, None
        self._policies.clear()
        callbacks, self._on_end = self._on_end, []
        try:
            with contextlib.ExitStack() as every_one:  # one that fails keeps none of the others from freeing
                for callback in callbacks:
                    every_one.callback(callback)
        finally:
            self._observers.tell("on_run_end", session=self)

    def on_end(self, callback: Callable[[], None]) -> None:
        """Have ``callback`` called once when the run ends, also by an exception: the place to free residuals."""
        self._on_end.append(callback)

    def coefficients(self, stream: Hashable = SINGLE) -> Coefficients:
        """Between :meth:`decide` and :meth:`commit` of a skip: how ``stream`` forecasts its residual.

        ``(c1, c2)`` is ``r_j + c1 (r_j - r_p) + c2 (r_p - r_q)`` of the residuals it computed last, r_j the newest; ``(c1,)``
        leaves r_q out, ``()`` holds r_j.

        Raises:
            RunError: nothing is decided for that stream.
        """
        name, step = str(stream), self._decided(stream).step
        return self._forecast.coefficients(name, self._computed.get(name, ()), step)

    def residuals_to_keep(self, stream: Hashable = SINGLE) -> int:
        """Between :meth:`decide` and :meth:`commit` of a computed evaluation: residuals later skips can use, this one included.

        0: none will be used; 1: this one alone; 2: this one and the one computed before it; 3: and the one before that.

        Raises:
            RunError: nothing is decided for that stream.
        """
        pending = self._decided(stream)
        if pending.step >= self.steps - 1:
            return 0
        wanted = self._forecast.residuals_to_keep(str(stream), pending.step)
        # What the safeguard compares with may be a forecast from two.
        return wanted if self._guard is None else max(2, wanted)

    def upcoming_skips(self) -> dict[str, Coefficients]:
        """After :meth:`commit`: the streams that skip before anything computes, each with its :meth:`coefficients` then.

        A forecast of decisions, from which nothing follows: the calls to come are taken to hold the streams they held last, in
        the same order, one evaluation each; a stream that has sat one out is left aside. Empty where a decision is under way.
        """
        found: dict[str, Coefficients] = {}
        if not self.active or self._pending is not None:
            return found
        latest = max(map(self.step, self._policies), default=0)
        for streams in _latest(self._calls):
            step = self.step(streams[0])  # that of all of them
            if step >= self.steps or step < latest - 1:
                continue
            policies = [copy.copy(self._policies[name]) for name in streams]  # a proposal leaves its mark on them
            if not decide_together(policies, self._joint, step)[1][0].skip:
                break
            for name in streams:
                found[name] = self._forecast.coefficients(name, self._computed.get(name, ()), step)
        return found

    def check(self, stream: Hashable = SINGLE) -> Check | None:
        """Between :meth:`decide` and :meth:`commit` of a computed evaluation of a guarded run: what to compare it with.

        Returns:
            the forecast a skip would have used and the relative error expected of it, to be followed by :meth:`measured`;
            ``None`` where there is nothing to compare (no safeguard, or the run is not where the plan says).

        Raises:
            RunError: nothing is decided for that stream.
        """
        name, step = str(stream), self._decided(stream).step
        if self._guard is None:
            return None
        plan = self._guard.plan
        place = plan.streams.index(name) if name in plan.streams else 0
        at = step - plan.first_step
        if not 0 <= at < plan.steps or not plan.masks[place][at]:
            return None
        before = tuple(i + plan.first_step for i in reversed(range(at)) if plan.masks[place][i])
        return plan.checks[place][at] if before[:2] == self._computed.get(name, ())[:2] else None

    def measured(self, stream: Hashable, error: float) -> Replan | None:
        """Tell the relative error |r - forecast| / |r| of :meth:`check`'s forecast; if it is much, the rest is replanned.

        Returns:
            what became of the rest, ``None`` if the run goes as planned.

        Raises:
            RunError: nothing is decided for that stream, or the run is not guarded.
        """
        step = self._decided(stream).step
        if self._guard is None:
            raise RunError("measured(): this run has no safeguard; pass safeguard=True to Session or attach")
        found = self._guard.compare(str(stream), step, float(error))
        if found is not None:
            self._replans.append(found)
            self._guard = self._guard.after(found)
            self.follow(found.schedule)
        return found

    def follow(self, schedule: Schedule) -> None:
        """Go on by another schedule of this run, from the next step on.

        Raises:
            ArgumentError: a schedule of another length.
        """
        if (schedule.first_step, schedule.steps) != (self.steps - schedule.steps, self.steps - schedule.first_step):
            raise ArgumentError(
                f"schedule has steps {schedule.first_step} to {schedule.first_step + schedule.steps - 1}, "
                f"this run has {self.steps}; pass one that ends where the run does"
            )
        if self._setup.forecast != "hold":
            self._forecast = Planned(schedule)
        self.schedule, self._make = schedule, following(schedule)
        make = following(schedule)
        for name, policy in list(self._policies.items()):
            self._policies[name] = make(name).carry_on(policy)
        if self._pending is not None:
            self._pending = evolve(self._pending, policies=tuple(map(self._policies.__getitem__, self._pending.streams)))

    @property
    def replans(self) -> tuple[Replan, ...]:
        """Where this run left its plan."""
        return tuple(self._replans)

    def _decided(self, stream: Hashable) -> _Pending:
        if self._pending is None or str(stream) not in self._pending.streams:
            raise RunError(f"stream={stream!r}: nothing is decided for it; call decide() first")
        return self._pending

    def step(self, stream: Hashable = SINGLE) -> int:
        """Position of the stream's next evaluation."""
        policy = self._policies.get(str(stream))
        return self._first if policy is None else policy.step

    def remaining(self, stream: Hashable = SINGLE) -> int:
        """Evaluations the stream has left in this run."""
        return self.steps - self.step(stream)

    @property
    def trace(self) -> tuple[TraceEntry, ...]:
        """Every decision of the run so far, or of the last one."""
        noted, self._noted = self._noted, []
        self._trace.extend(TraceEntry(*values) for values in noted)
        return tuple(self._trace)

    def _policy(self, name: str) -> Policy:
        if name not in self._policies:
            policy = self._make(name)
            policy.reset(self._first)
            self._policies[name] = policy
        return self._policies[name]

    def __enter__(self) -> Session:
        return self.begin()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.end()

    def __repr__(self) -> str:
        state = "under way" if self.active else "not under way"
        return f"<Session of {self.steps} steps, {state}, {len(self.trace)} decisions>"


def _latest(calls: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Of these calls, in order, those whose streams were in no later one."""
    found: list[tuple[str, ...]] = []
    for streams in reversed(list(calls)):
        if all(set(streams).isdisjoint(later) for later in found):
            found.append(streams)
    return found[::-1]
