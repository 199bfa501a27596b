"""What the ranks found at a computed step, taken together: each saw a part of the tokens, or another rank's sample."""

from __future__ import annotations

import math
from collections.abc import Sequence

from attrs import define

from magpolicy_torch.ranks._group import Occasion, RankGroup

_NUMBERS = 6


@define
class Found:
    """What was found of the residual of one stream."""

    made: bool = True
    """Whether there is one."""
    finite: bool = True
    """Whether it can be kept."""
    lengths: Sequence[float] | None = None
    """Of what its forecast leaves, and of the residual; ``None``: there was nothing to compare."""
    turn: Sequence[float] | None = None
    """Inner product of its last two changes, and the length of each; ``None``: there were no two."""


def together(group: RankGroup, step: int, found: Sequence[Found]) -> list[Found]:
    """The same for all ranks: a residual is one of all their tokens, and finite if it is on every rank.

    Raises:
        RunError: a rank is at another step.
    """
    told = group.tell(Occasion.STEP, step, [number for one in found for number in _written(one)])
    if told is None:  # the others have left the run
        return list(found)
    return [_read([numbers[start : start + _NUMBERS] for numbers in told]) for start in range(0, len(told[0]), _NUMBERS)]


def _written(found: Found) -> list[float]:
    lacks = (not found.made) + 2 * (not found.finite) + 4 * (found.lengths is None) + 8 * (found.turn is None)
    left, whole = found.lengths or (0.0, 0.0)
    product, *lengths = found.turn or (0.0, 0.0, 0.0)
    return [float(lacks), left**2, whole**2, product, *(length**2 for length in lengths)]


def _read(told: Sequence[Sequence[float]]) -> Found:
    lacks = [int(numbers[0]) for numbers in told]
    left, whole, product, *lengths = (math.fsum(column) for column in zip(*(numbers[1:] for numbers in told), strict=True))
    return Found(
        made=not any(bits & 1 for bits in lacks),
        finite=not any(bits & 2 for bits in lacks),
        lengths=None if any(bits & 4 for bits in lacks) else (math.sqrt(left), math.sqrt(whole)),
        turn=None if any(bits & 8 for bits in lacks) else (product, *map(math.sqrt, lengths)),
    )
