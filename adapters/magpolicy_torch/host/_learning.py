"""Learning from the runs that are made anyway: what a run shows while it computes is kept, and the next run is planned from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attrs import Factory, define

from magpolicy import Calibration, Session
from magpolicy.adapter import completed
from magpolicy_torch.residuals._samples import ResidualSamples


@define(eq=False)
class Lesson:
    """What is to be learned from one run. :class:`HostRun` fills it and ends it."""

    __module__ = "magpolicy_torch"

    samples: ResidualSamples | None
    """Looks at the run's residuals; ``None`` where it can teach nothing new."""
    taught: Callable[[Calibration], None]
    """Is given what the run taught, once it went to its end."""
    expert_steps: list[int] = Factory(list)
    """Steps at which another model took over."""

    def drop(self) -> None:
        """Learn nothing from it: the run was stopped."""
        samples, self.samples = self.samples, None
        if samples is not None:
            samples.clear()

    def end(self, session: Session, noise: Sequence[float] | None = None) -> None:
        """The run is over: learn from it, if it went to its end.

        Args:
            session: what decided.
            noise: the noise level of each evaluation, where the session does not know it.
        """
        samples = self.samples
        trace = session.trace
        part = None if samples is None or not trace or trace[-1].step < session.steps - 1 else samples.measured()
        self.drop()
        if part is None:
            return
        levels: Any = session.sigmas or noise
        provenance: dict[str, Any] = {"taught": taught_by(session)}
        if levels is None:
            levels, provenance["sigmas"] = [1 - step / session.steps for step in range(session.steps)], "assumed"
        self.taught(completed(part, levels, expert_steps=self.expert_steps, provenance=provenance))


def taught_by(session: Session) -> Mapping[str, Any]:
    """What of the run was seen: evaluations, and those computed."""
    computed = [entry for entry in session.trace if entry.decision.computes]
    return {"runs": 1, "of": len(session.trace), "computed": len(computed), "first": session.trace[0].step}
