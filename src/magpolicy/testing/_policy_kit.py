"""Laws every policy holds, whatever its rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from magpolicy.policy._decision import Decision
from magpolicy.testing import strategies
from magpolicy.testing._hypothesis import example, given, settings


class _Policy(Protocol):
    def decide(self) -> Decision: ...
    def reset(self) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any], /) -> None: ...


def check_policy(make: Callable[..., _Policy], *, examples: int = 100) -> None:
    """Check that a policy holds the laws; raises ``AssertionError`` (with Hypothesis' smallest example) where it does not.

    Args:
        make: called as ``make(ratios, threshold=..., max_skips=..., retention=...)``; returns a policy with ``decide()``,
            ``reset()``, ``state_dict()`` and ``load_state_dict()``, such as :class:`magpolicy.MagPolicy`.
        examples: Hypothesis examples per law.
    """

    @settings(max_examples=examples, deadline=None)
    @given(strategies.ratios(), strategies.settings())
    @example([1.0] + [0.97] * 11, {"threshold": 0.1, "max_skips": 2, "retention": 0.0})  # every accumulator decides somewhere
    def laws(ratios: list[float], chosen: dict[str, Any]) -> None:
        policy = make(ratios, **chosen)
        first = [policy.decide() for _ in ratios]
        _check_decisions(first, chosen)
        policy.reset()
        assert [policy.decide() for _ in ratios] == first, "a reset policy decides as a fresh one"
        for at in range(len(ratios) + 1):
            _check_restore(make, ratios, chosen, first, at)

    laws()


def _check_decisions(decisions: list[Decision], chosen: dict[str, Any]) -> None:
    assert not decisions[0].skip, "nothing is skipped before something was computed"
    retained = int(chosen["retention"] * len(decisions))
    assert not any(d.skip for d in decisions[:retained]), "retained steps compute"
    longest = run = 0
    for decision in decisions:
        run = run + 1 if decision.skip else 0
        longest = max(longest, run)
    assert longest <= chosen["max_skips"], f"{longest} consecutive skips with max_skips={chosen['max_skips']}"


def _check_restore(
    make: Callable[..., _Policy], ratios: list[float], chosen: dict[str, Any], expected: list[Decision], at: int
) -> None:
    saved = make(ratios, **chosen)
    before = [saved.decide() for _ in range(at)]
    restored = make(ratios, **chosen)
    restored.load_state_dict(saved.state_dict())
    after = [restored.decide() for _ in range(at, len(ratios))]
    assert before + after == expected, f"saving and restoring at step {at} changes the decisions"
