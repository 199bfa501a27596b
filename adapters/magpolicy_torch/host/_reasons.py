"""Why evaluations computed, in words: what a report adds of its own, and why a whole run skipped nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from magpolicy import Decision, Session, TraceEntry
from magpolicy_torch.evaluation._record import Record

FAILED = (Decision.UNSUPPORTED, Decision.MISMATCH, Decision.NOT_FINITE)
"""What stands in the place of a skip that was decided and could not be made."""
_TOLD = (Decision.UNSUPPORTED, Decision.UNLISTED, Decision.ANSWERED, Decision.PAST_END)
"""Whoever decides so notes a problem, which says more."""
_TELLING = (Decision.MISMATCH, Decision.NOT_FINITE, Decision.UNCALIBRATED)
_BY_THE_RULE = (Decision.RETENTION, Decision.THRESHOLD, Decision.MAX_SKIPS, Decision.RATIO_BOUND, Decision.UNCALIBRATED)


def untold(trace: Iterable[TraceEntry], record: Record) -> Iterator[str]:
    """What is to be said of evaluations that computed, and neither the settings nor a problem that was noted tell it."""
    counts: Counter[Decision] = Counter()
    begun: set[str] = set()
    for entry in trace:
        if entry.decision in _TELLING or (entry.decision is Decision.NO_RESIDUAL and entry.stream in begun):
            counts[entry.decision] += 1
        begun.add(entry.stream)  # its first evaluation has nothing to reuse
    noted = [decision for decision in counts if any(problem.endswith(decision.words) for problem in record.problems)]
    return (_counted(number, decision) for decision, number in counts.items() if decision not in noted)


def is_to_skip(session: Session) -> bool:
    """Whether a run that begins is to skip something, as far as that is known."""
    plan = session.schedule
    return session.config.asks_skips if plan is None else any(decision.skip for step in plan.decisions for decision in step)


def why_none(session: Session, record: Record) -> Sequence[str]:
    """Why a run skipped nothing, the most frequent reason first."""
    counts = Counter(entry.decision for entry in session.trace)
    if record.unlisted or (record.problems and not counts.keys().isdisjoint(FAILED)):
        return record.problems
    failed = {decision: number for decision, number in counts.items() if decision in FAILED}
    words = [
        _counted(number, decision)
        for decision, number in (failed or dict(counts.most_common())).items()
        if decision not in _TOLD
    ]
    if session.replans:
        words.insert(0, f"it left its plan at step {session.replans[0].step}, where forecasts were worse than expected")
    if session.schedule is None and counts.most_common(1)[0][0] in _BY_THE_RULE:
        words.append(session.advice)
    return [*record.problems, *words]


def _counted(number: int, decision: Decision) -> str:
    return f"{number} evaluation{'' if number == 1 else 's'} computed since {decision.words}"
