"""What a policy answers: compute or skip, and why."""

from __future__ import annotations

import enum


class Decision(enum.Enum):
    """One decision. ``.skip`` says whether the blocks are skipped, ``.reason`` why, as a lower-case word.

    All members but ``REUSED`` (and ``ANSWERED`` and ``ABSENT``, where nothing was asked of the blocks) compute. The rule gives
    the first group, a run's plan or streams the second, an adapter that cannot serve a skip the third (see
    :meth:`magpolicy.Session.commit`).
    """

    __module__ = "magpolicy"

    REUSED = "reused"
    """The modelled error is within the threshold: the cached residual is reused."""

    RETENTION = "retention"
    """Within the leading share of the run that is always computed."""
    WINDOW = "window"
    """Outside ``start_step`` to ``end_step``."""
    FORCED = "forced"
    """The caller, or the rule's last-step option, asked for it."""
    FORBIDDEN = "forbidden"
    """The semantics never skip this entry of the calibrated table."""
    THRESHOLD = "threshold"
    """The accumulated error would pass the threshold."""
    MAX_SKIPS = "max_skips"
    """There would be more than K skips in a row."""
    RATIO_BOUND = "ratio_bound"
    """The step's own ratio is further from 1 than the semantics allow."""
    NO_RESIDUAL = "no_residual"
    """Nothing has been computed in this stream yet, or its residual is gone."""
    UNCALIBRATED = "uncalibrated"
    """The noise level lies outside the calibrated range."""

    JOINT = "joint"
    """Another stream of the same call computes."""
    SCHEDULED = "scheduled"
    """A given schedule computes here."""

    MISMATCH = "mismatch"
    """The cached residual has another shape, dtype or device."""
    NOT_FINITE = "not_finite"
    """The cached residual holds NaN or infinity."""
    UNSUPPORTED = "unsupported"
    """The model ran its blocks in a way that cannot be bypassed."""
    PAST_END = "past_end"
    """The run has had all its evaluations."""
    UNLISTED = "unlisted"
    """The evaluation is none of those that the run was known to make (in reports only)."""
    ANSWERED = "answered"
    """Something else than the blocks answered, such as another cache in the model: neither computed nor reused."""

    ABSENT = "absent"
    """The stream was not evaluated at this step (schedules of what ran only)."""

    skip: bool
    computes: bool
    reason: str

    def __init__(self, reason: str) -> None:
        self.reason = reason
        self.skip = reason == "reused"
        self.computes = reason not in ("reused", "answered", "absent")

    @property
    def words(self) -> str:
        """Why, as a clause that goes on after "computed since" or "skipped since"; empty for ``ABSENT``."""
        return _WORDS.get(self.reason, "")

    def __str__(self) -> str:
        return self.reason


_WORDS = {
    "reused": "the modelled error is within the threshold, or the plan skips here",
    "retention": "the first steps of a run always do, by retention",
    "window": "they lie outside start_step to end_step",
    "forced": "they were asked to, by forced or as the last step",
    "forbidden": "the semantics skip no such entry of the table",
    "threshold": "the error would pass the threshold",
    "max_skips": "more than max_skips steps in a row would be skipped",
    "ratio_bound": "their ratios are further from 1 than the semantics allow",
    "no_residual": "there was no residual to reuse: none of their stream was computed before, or it was let go",
    "uncalibrated": "their noise levels lie outside those that were calibrated",
    "joint": "another stream of the same call did",
    "scheduled": "the schedule does there",
    "mismatch": "the residual to reuse has another shape, number type or device: the size, the batch or the precision changed",
    "not_finite": "the residual to reuse holds NaN or infinity; a wider number type (bfloat16 or float32) may mend that",
    "unsupported": "the model ran its blocks in a way that cannot be bypassed",
    "past_end": "the run had had all its steps",
    "unlisted": "the run was not known to make them",
    "answered": "something else answered in the place of the blocks, such as another cache",
}
