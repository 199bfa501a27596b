"""One run: keyed streams that are decided together where they are evaluated together, and what was decided."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from itertools import repeat
from types import TracebackType
from typing import Any

from magpolicy import _checks
from magpolicy._errors import ArgumentError, RunError
from magpolicy._keywords import suggests
from magpolicy.calibration._forecast import History, computed_after
from magpolicy.catalog._source import PlanSource
from magpolicy.planning._safeguard import Replan, Safeguard, safeguard_of
from magpolicy.planning._trust import ForecastTrust
from magpolicy.plugin_system._observers import Observers
from magpolicy.policy._curve import SINGLE
from magpolicy.policy._decision import Decision
from magpolicy.policy._policy import Policy, ScheduledPolicy, decide_together, settle_together
from magpolicy.policy._semantics import Semantics
from magpolicy.run._call import CallDecision, StreamDecision
from magpolicy.run._config import PreparedRun, RunConfig
from magpolicy.run._resolve import resolve
from magpolicy.schedule._coefficients import Coefficients
from magpolicy.schedule._schedule import Schedule
from magpolicy.schedule._trace import TraceEntry


class Session:
    """One run: it decides each evaluation of each stream, and notes the decisions.

    >>> import magpolicy
    >>> with magpolicy.Session([1.0, 1.01, 1.0, 0.99], threshold=0.05, max_skips=2, retention=0.25) as session:
    ...     for step in range(4):
    ...         decision = session.decide("cond")
    ...         # compute or reuse, then
    ...         session.commit()
    >>> print(magpolicy.Schedule.from_trace(session.trace))
    4 steps █··█  2 computed  2.00x

    A call that holds several streams (conditions batched together) takes one decision: ``session.decide(["cond", "uncond"])``
    skips only if every stream passes its own test; each stream keeps its own accumulators. Arguments are those of
    :func:`magpolicy.simulate`; ``source`` may also be a :class:`magpolicy.Schedule`, which the run then follows.

    With one of ``speedup``, ``computed`` and ``error`` (and ``objective`` and ``guidance``, as in :func:`magpolicy.plan`) the
    run is planned, each time it begins; ``.schedule`` is the plan. ``safeguard`` (``True``, a margin, or a
    :class:`magpolicy.Safeguard`) compares the run with its plan.

    Not for use from several threads at once: one session is one run.
    """

    __module__ = "magpolicy"
    # What users read, declared: type checkers differ in what they infer from assignments of several at once.
    steps: int
    sigmas: tuple[float, ...] | None
    schedule: Schedule | None
    active: bool

    @suggests
    def __init__(
        self,
        source: PlanSource | Schedule,
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
        speedup: float | str | None = None,
        computed: int | None = None,
        error: float | None = None,
        objective: str | None = None,
        guidance: float | Mapping[str, float] | None = None,
        safeguard: float | bool | Safeguard | None = None,
    ) -> None:
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
            speedup=speedup,
            computed=computed,
            error=error,
            objective=objective,
            guidance=guidance,
        )
        self._set(config, steps, sigmas, safeguard)

    @classmethod
    def from_config(
        cls,
        config: RunConfig,
        steps: int | None,
        sigmas: Sequence[float] | None = None,
        safeguard: float | bool | Safeguard | None = None,
    ) -> Session:
        """A session for settings that were checked before (:func:`magpolicy.adapter.resolve`)."""
        session = cls.__new__(cls)
        session._set(config, steps, sigmas, safeguard)
        return session

    def _set(
        self, config: RunConfig, steps: int | None, sigmas: Sequence[float] | None, safeguard: float | bool | Safeguard | None
    ) -> None:
        self.config = config
        self.steps, self.sigmas = config.length(steps, sigmas)
        self._joint = config.joint
        self._guarded = safeguard
        self._replans: list[Replan] = []
        self._trust: dict[str, ForecastTrust] = {}  # per stream
        self._doubted: dict[tuple[int, str], None] = {}  # steps and streams
        self._start_by(config.prepare(self.steps, self.sigmas), 0)
        self._computed: dict[str, History] = {}  # per stream
        self._calls: dict[tuple[str, ...], None] = {}  # streams evaluated together, the latest last
        self._policies: dict[str, Policy] = {}
        self._pending: CallDecision | None = None
        self._trace: list[TraceEntry] = []
        self._noted: list[tuple[Any, ...]] = []  # what is to be added to it: an entry takes as long to make as a decision
        self._on_end: list[Callable[[], None]] = []
        self._make_report: Callable[[], Any] | None = None
        self._first = 0
        self.active = False

    def _start_by(self, prepared: PreparedRun, first: int) -> None:
        """Go by this in the next run, which begins at ``first``."""
        self._go_by(prepared)
        self._left = False  # for another schedule
        self._replans.clear()
        self._guard = None if self.schedule is None else safeguard_of(self._guarded, self.schedule, prepared.request)
        self._prepared_for = first
        self._doubtful, self._differs = prepared.doubtful, prepared.differs

    def _go_by(self, prepared: PreparedRun) -> None:
        self._make, self._forecast, self.schedule = prepared.policy, prepared.forecast, prepared.schedule

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
        if self._left or step != self._prepared_for:
            self._start_by(self.config.prepare(self.steps, self.sigmas, step), step)
        if self._differs and self.config.nearest is not None:
            self.config.nearest.tell(self._differs)
        self._policies.clear()
        self._computed.clear()
        self._calls.clear()
        self._trace.clear()
        self._noted.clear()
        self._trust.clear()
        self._doubted.clear()
        self._pending, self._first, self.active = None, step, True
        self._observers = Observers()
        try:
            self._observers.tell("on_run_start", session=self)
        except BaseException:  # what is no error comes out: the run has not begun
            self.end()
            raise
        return self

    def decide(
        self, stream: Hashable | Sequence[Hashable] = SINGLE, *, step: int | None = None, sigma: float | None = None
    ) -> Decision:
        """Decide the next evaluation of one stream, or of several that are evaluated in one call.

        Args:
            stream: a stream's name (anything hashable; kept as text), or a list of names for one batched call.
            step: position in the run, if streams may leave out steps; by default the stream's next one.
            sigma: noise level for the trace; by default the one the session was given for that step.

        Returns:
            the call's decision. :meth:`commit` must follow before the next one.

        Raises:
            RunError: no run is under way, the last decision is not committed, or the stream's run is over.
        """
        names = tuple(map(str, stream)) if isinstance(stream, list | tuple) else (str(stream),)
        if step is not None:
            step = _checks.whole("step", step, 0, example="0")
        return self._decide("decide()", names, step, sigma).decision

    def call(
        self,
        streams: Sequence[Hashable],
        *,
        step: int | None = None,
        earliest: int | None = None,
        sigma: float | None = None,
    ) -> CallDecision | None:
        """Decide one call of a model, and all that follows from the decision. Adapters use this instead of :meth:`decide`.

        Args:
            streams: the streams of this call, in batch order.
            step: position in the run; by default the next one of all these streams.
            earliest: or the host's position. If one of these streams is further already, the call is at its next position.
            sigma: noise level for the trace; by default the one the session was given for that step.

        Returns:
            the call; its ``commit`` or ``cancel`` must follow before the next one. ``None`` if one of these streams has no
            evaluation left.

        Raises:
            RunError: no run is under way, the last call is not ended, or the step lies outside the run or before a stream's.
        """
        names = tuple(map(str, streams))
        nexts = [self.step(name) for name in names]
        if max(nexts, default=0) >= self.steps:
            return None
        if step is None:
            step = max(nexts if earliest is None else [*nexts, earliest], default=0)
        else:
            step = _checks.whole("step", step, 0, example="0")
        return self._decide("call()", names, step, sigma)

    def _decide(self, what: str, names: tuple[str, ...], step: int | None, sigma: float | None) -> CallDecision:
        if not self.active:
            raise RunError(f"{what}: no run is under way; call begin(), or use the session in a with block")
        if self._pending is not None:
            raise RunError(f"{what}: step {self._pending.step} is not committed; call commit() after each decision")
        if not names or len(set(names)) < len(names):
            raise ArgumentError(f"stream={list(names)} must name at least one stream, each once")
        policies = tuple(map(self._policy, names))
        if step is None:
            step = max([policy.step for policy in policies])
        elif step > self.steps - 1:
            raise RunError(f"step={step} lies past this run's {self.steps} steps; begin another run")
        elif step < self._first:
            raise RunError(f"step={step} lies before this run's first step {self._first}; begin another run")
        proposed, decided, tested = decide_together(policies, self._joint, step)
        if sigma is None and self.sigmas is not None:
            sigma = self.sigmas[step]
        streams = tuple(map(self._consequences, names, decided, repeat(step)))
        decision = decided[0] if len(decided) == 1 else _first_reason(decided)
        useful = any(stream.keep > 0 or stream.check is not None for stream in streams)
        self._pending = CallDecision(
            streams, decision, decision.skip, useful, step, sigma, self, names, policies, proposed, tested
        )
        return self._pending

    def _consequences(self, name: str, decision: Decision, step: int) -> StreamDecision:
        keep, forecast, trust = self._keep(name, step), self._forecast, self._trust.get(name, _TRUSTED)
        turns = self._doubtful is not None and keep > 0 and not forecast.holds and not trust.settled
        if decision.skip:  # as _coefficients, which would ask the trust once more
            holds = forecast.holds or trust.holds
            coefficients = () if holds else forecast.coefficients(name, self._computed.get(name, ()), step)
            return StreamDecision(name, decision, coefficients, keep, None, turns)
        check = None if self._guard is None else self._guard.check(name, step, self._computed.get(name, ()))
        return StreamDecision(name, decision, (), keep, check, turns)

    def _coefficients(self, name: str, step: int) -> Coefficients:
        """How a skip forecasts its residual, if the run believes in forecasts."""
        if self._forecast.holds or self._trust.get(name, _TRUSTED).holds:
            return ()
        return self._forecast.coefficients(name, self._computed.get(name, ()), step)

    def _keep(self, name: str, step: int) -> int:
        if step >= self.steps - 1:
            return 0
        wanted = 1 if self._forecast.holds else self._forecast.residuals_to_keep(name, step)
        # What the safeguard compares with may be a forecast from two.
        return wanted if self._guard is None else max(2, wanted)

    def commit(self, revised: Decision | None = None) -> None:
        """Make the decision final.

        Args:
            revised: the reason why a skip was computed after all, e.g. ``Decision.NO_RESIDUAL`` from an adapter that has
                none of that shape; or ``Decision.ANSWERED`` of a call whose blocks something else answered for. The
                accumulators then start afresh, as after any computed step.

        Raises:
            RunError: nothing was decided, or a computed evaluation is to be revised to a skip.
        """
        if self._pending is None:
            raise RunError("commit(): nothing is decided; call decide() first")
        self._commit(self._pending, revised, {}, {})

    def _commit(
        self, call: CallDecision, revised: Decision | None, errors: Mapping[str, float], cosines: Mapping[str, float]
    ) -> None:
        if self._pending is not call:
            raise RunError(f"commit(): the call at step {call.step} is ended already; call() makes the next one")
        if revised is not None and not revised.computes and revised is not Decision.ANSWERED:
            raise RunError(f"commit({revised}): a decision can only be revised to compute; pass a reason that computes")
        if errors:
            self._compare(call, errors)
        if cosines:
            self._learn_turns(call, cosines)
        step, streams = call.step, call.streams
        if revised is not None and (call.skip or revised is Decision.ANSWERED):
            call.decision, call.skip = revised, False
            for stream in streams:
                stream.decision, stream.coefficients = revised, ()
        settle_together(call._policies, call._proposed, [stream.decision for stream in streams])
        self._pending = None
        self._calls.pop(call._names, None)
        self._calls[call._names] = None
        for stream, policy, error in zip(streams, call._policies, call._tested, strict=True):
            name, decision = stream.name, stream.decision
            ratio = float(policy.accumulated_ratio)
            self._noted.append((step, name, call.sigma, decision, ratio, error, policy.skips, stream.coefficients))
            if decision.computes:
                self._computed[name] = computed_after(self._computed.get(name, ()), step)
            elif self._trust.get(name, _TRUSTED).holds and self._forecast.coefficients(
                name, self._computed.get(name, ()), step
            ):
                self._doubted[step, name] = None  # it holds, and was planned to forecast
            if self._observers.of_decisions:
                self._observers.tell("on_decision", session=self, entry=self.trace[-1])

    def _compare(self, call: CallDecision, errors: Mapping[str, float]) -> None:
        """Compare what was measured with the plan, and follow another where the run is off."""
        if self._guard is None:
            raise RunError("errors: this run has no safeguard; pass safeguard=True to Session or attach")
        if unknown := set(errors).difference(call._names):
            raise RunError(f"errors has {', '.join(map(repr, sorted(unknown)))}: nothing is decided for it")
        for name, error in errors.items():
            found = self._guard.compare(name, call.step, float(error))
            if found is not None:
                self._replans.append(found)
                self._guard = self._guard.after(found)
                self.follow(found.schedule)

    def _learn_turns(self, call: CallDecision, cosines: Mapping[str, float]) -> None:
        """Believe in forecasts, or not, by what a computed step showed."""
        if unknown := set(cosines).difference(call._names):
            raise RunError(f"cosines has {', '.join(map(repr, sorted(unknown)))}: nothing is decided for it")
        for name, cosine in cosines.items():
            history = self._computed.get(name, ())
            if self._doubtful is not None and len(history) > 1:
                self._trust[name] = self._trust.get(name, _TRUSTED).after(float(cosine), since=self._doubtful[history[1]])

    def cancel(self) -> None:
        """Forget a decision that was not carried out (the model raised); the step is decided again next time."""
        if self._pending is not None:
            for policy in self._pending._policies:
                policy.forget()
            self._pending = None

    def end(self) -> None:
        """End the run, early or not; calling it again does nothing. The trace stays."""
        if not self.active:
            return
        self.active, self._pending = False, None
        self._policies.clear()
        callbacks, self._on_end = self._on_end, []
        make_report, self._make_report = self._make_report, None
        try:
            with contextlib.ExitStack() as every_one:  # one that fails keeps none of the others from freeing
                for callback in callbacks:
                    every_one.callback(callback)
        finally:
            self._observers.tell_end(make_report, session=self)

    def on_end(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` once when the run ends, also by an exception; adapters free residuals there."""
        self._on_end.append(callback)

    def report_by(self, make: Callable[[], Any]) -> None:
        """Let ``make`` make the report that observers are given when this run ends. It is called once, if there are some, after
        the functions of :meth:`on_end`; it must not wait for the device."""
        self._make_report = make

    def coefficients(self, stream: Hashable = SINGLE) -> Coefficients:
        """Between :meth:`decide` and :meth:`commit` of a skip: how ``stream`` forecasts its residual.

        ``(c1, c2)`` is ``r_j + c1 (r_j - r_p) + c2 (r_p - r_q)`` of the residuals it computed last, r_j the newest; ``(c1,)``
        leaves r_q out, ``()`` holds r_j.

        Raises:
            RunError: nothing is decided for that stream.
        """
        for decided in () if self._pending is None else self._pending.streams:
            if decided.name == str(stream):
                return decided.coefficients
        raise RunError(f"stream={stream!r}: nothing is decided for it; call decide() first")

    def follow(self, schedule: Schedule) -> None:
        """Follow another schedule of this run, from the next step on.

        Raises:
            ArgumentError: a schedule of another length.
        """
        if (schedule.first_step, schedule.steps) != (self.steps - schedule.steps, self.steps - schedule.first_step):
            raise ArgumentError(
                f"schedule has steps {schedule.first_step} to {schedule.first_step + schedule.steps - 1}, "
                f"this run has {self.steps}; pass one that ends where the run does"
            )
        self._go_by(self.config.following(schedule))
        self._left = True
        for name, policy in list(self._policies.items()):
            follower = self._make(name)
            assert isinstance(follower, ScheduledPolicy)
            self._policies[name] = follower.carry_on(policy)
        call = self._pending
        if call is not None:
            call._policies = tuple(map(self._policies.__getitem__, call._names))
            for stream in call.streams:
                stream.keep = self._keep(stream.name, call.step)

    @property
    def source(self) -> str:
        """What decides, in words; empty if every step computes."""
        return self.config.source

    @property
    def advice(self) -> str:
        """One thing to do that would bring runs closer to the full run at the same speed, in words; empty if there is none."""
        return self.config.advice

    @property
    def differs(self) -> str:
        """In what the run differs from what was asked, in words, as its length does not allow it; empty if in nothing."""
        return self._differs

    @property
    def replans(self) -> tuple[Replan, ...]:
        """Each time that this run left its plan, in order."""
        return tuple(self._replans)

    @property
    def doubted(self) -> tuple[tuple[int, str], ...]:
        """The steps and streams that held a residual, and did not forecast it, since the run showed that residuals do not keep
        their direction as the general prior expects."""
        return tuple(self._doubted)

    def _upcoming_skips(self) -> dict[str, Coefficients]:
        """As :meth:`CallDecision.upcoming_skips`."""
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
                found[name] = self._coefficients(name, step)
        return found

    def step(self, stream: Hashable = SINGLE) -> int:
        """Position of the stream's next evaluation."""
        policy = self._policies.get(str(stream))
        return self._first if policy is None else policy.step

    def remaining(self, stream: Hashable = SINGLE) -> int:
        """How many evaluations of the stream are still to come in this run."""
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


_TRUSTED = ForecastTrust()


def _first_reason(decided: Sequence[Decision]) -> Decision:
    """The decision of a call of several streams: where it computes, the first reason that a stream of its own has."""
    return next((d for d in decided if not d.skip and d is not Decision.JOINT), decided[0])


def _latest(calls: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Of these calls, in order, those whose streams were in no later one."""
    found: list[tuple[str, ...]] = []
    for streams in reversed(list(calls)):
        if all(set(streams).isdisjoint(later) for later in found):
            found.append(streams)
    return found[::-1]
