"""One call of a model, decided: what each of its streams does, and what follows from it for whoever carries it out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from attrs import define

from magpolicy.policy._decision import Decision
from magpolicy.policy._policy import Policy
from magpolicy.schedule._coefficients import Check, Coefficients

if TYPE_CHECKING:
    from magpolicy.run._session import Session


@define  # and not frozen, which would take three times as long to make: they are made at every evaluation
class StreamDecision:
    """What a call does in one stream: the decision, and what an adapter does with the residuals."""

    name: str
    """The stream."""
    decision: Decision
    coefficients: Coefficients
    """How a skip forecasts its residual (:attr:`magpolicy.Schedule.coefficients`); ``()`` where the call computes."""
    keep: int
    """Residuals that later skips can use if this call computes, its own included: 0 none, 1 its own alone, 2 its own and the
    one computed before it, 3 that and the one before."""
    check: Check | None
    """The forecast to compare with the residual that this call computes, and its expected relative error. ``None``: there is
    nothing to compare."""
    compares_turn: bool = False
    """Whether, if this call computes, the session wants to know if the residual kept its direction: the cosine between its
    change since the residual computed before and the change before that."""


@define(eq=False, repr=False)
class CallDecision:
    """One call of a model, which may hold several streams: one decision, and its consequences.

    :meth:`magpolicy.Session.call` makes it; :meth:`commit` or :meth:`cancel` ends it, and only then can the next call be
    decided. The order of work of an adapter::

        call = session.call(["cond", "uncond"], earliest=step)
        if call is None:  # the run has had all its evaluations: compute, and keep nothing
            ...
        # A skip takes the residuals that stream.coefficients ask for; a computed call makes them, and finds the relative
        # error |r - forecast| / |r| of each stream's check, and the cosine of each stream that compares its turn.
        call.commit(errors={...}, cosines={...})
        # What was computed is stored: stream.keep of them, counted from the newest.
    """

    streams: tuple[StreamDecision, ...]
    """The streams of this call, in batch order."""
    decision: Decision
    """The call's decision; where it computes, the first reason that a stream of its own has."""
    skip: bool
    """Whether the blocks are skipped, for all streams."""
    useful: bool
    """Whether anything comes of what this call computes: a later skip, or a comparison."""
    step: int
    """Position in the run."""
    sigma: float | None
    """Noise level, if known."""
    _session: Session
    _names: tuple[str, ...]
    _policies: tuple[Policy, ...]
    _proposed: Sequence[Decision]
    _tested: Sequence[float]

    def commit(
        self,
        revised: Decision | None = None,
        errors: Mapping[str, float] | None = None,
        cosines: Mapping[str, float] | None = None,
    ) -> None:
        """Make the decision final.

        Args:
            revised: the reason why a skip was computed after all, e.g. ``Decision.NO_RESIDUAL``. The accumulators then start
                afresh, as after any computed step.
            errors: by stream, the relative error |r - forecast| / |r| of the forecast in its ``check``. If one is much larger
                than expected, the rest of the run is planned again, and ``keep`` is that of the new plan.
            cosines: by stream that ``compares_turn``, the cosine between r - r_j and r_j - r_p of the residual computed here
                and the two computed before it. Where it says that the residual does not keep its direction, skips hold until
                a later one says that it does. Streams for which there are no two are left out.

        Raises:
            RunError: the call is ended already, a computed call is to be revised to a skip, or errors are given for a run
                without a safeguard. Nothing is changed.
        """
        self._session._commit(self, revised, errors or {}, cosines or {})

    def cancel(self) -> None:
        """Drop a call that was not carried out (the model raised). The next call decides its step again."""
        if self._session._pending is self:
            self._session.cancel()

    def upcoming_skips(self) -> dict[str, Coefficients]:
        """After :meth:`commit`: the streams that skip before the next call that computes, each with its coefficients.

        This is only a guess, for copying residuals ahead. It assumes that the next calls hold the same streams as the last
        ones, in the same order, one evaluation each. A stream that left out its last evaluation is not in it. During a call
        it is empty.
        """
        return self._session._upcoming_skips()
