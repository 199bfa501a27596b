"""What the ranks of one run tell one another: small messages of a fixed size, and sums.

Whatever a rank says, it says in one gather of ``SIZE`` bytes, with the occasion in front. So ranks that are not where the
others are, after an exception on one of them, find that out, and never take one thing for another.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from typing import Any, TypeVar

import torch
from magpolicy import RunError
from torch import Tensor, distributed

SIZE = 512
NUMBERS = SIZE // 8 - 2
"""Numbers that fit into a message."""

T = TypeVar("T")


class Occasion(IntEnum):
    """At what point of a run a rank speaks."""

    START = 1
    KNOWLEDGE = 2
    STEP = 3
    END = 4


_IN_WORDS = {
    Occasion.START: "begins a run",
    Occasion.KNOWLEDGE: "asks what earlier runs taught",
    Occasion.STEP: "computes a step",
    Occasion.END: "ends a run",
}
_APART = "attach with group=False where ranks share nothing"
_MEND = f"attach with the same settings on every rank, or {_APART}"


class RankGroup:
    """The ranks that run a model together, in one run. Every rank calls the same methods in the same order.

    Args:
        process_group: theirs; ``None`` is the default group.
    """

    __module__ = "magpolicy_torch.adapter"

    def __init__(self, process_group: Any = None) -> None:
        self.process_group = process_group
        self.size: int = distributed.get_world_size(process_group)
        self.rank: int = distributed.get_rank(process_group)
        self.together = True
        """Whether all are still in this run; not after one of them has left it by an exception, where its host lets others go
        on. Then each goes on by itself."""
        self._device = _device_of(process_group)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of the ranks' tensors of one shape, the same on every rank; ``tensor`` stays as it is."""
        sums = tensor.detach().to(self._device, copy=True).contiguous()
        distributed.all_reduce(sums, group=self.process_group)
        return sums.to(tensor.device)

    def tell(self, occasion: Occasion, step: int, numbers: Sequence[float]) -> list[tuple[float, ...]] | None:
        """Within a run: the numbers of each rank, as many on each; ``None`` if a rank has left the run, here or before.

        Raises:
            RunError: ranks are at different steps, on each of them.
        """
        found: list[tuple[float, ...]] = []
        for start in range(0, max(len(numbers), 1), NUMBERS):
            part = numbers[start : start + NUMBERS]
            told = self._meet(occasion, struct.pack(f"<q{len(part)}d", step, *part)) if self.together else []
            if any(other is not occasion for other, _ in told):
                self.together = False
            if not self.together:
                return None
            values = [struct.unpack_from(f"<q{len(part)}d", said) for _, said in told]
            if len({value[0] for value in values}) > 1:
                places = ", ".join(f"rank {rank} at step {value[0]}" for rank, value in enumerate(values))
                raise RunError(
                    f"ranks are not at one step: {places}; run the model on every rank alike, or attach with group=False"
                )
            found = [(*before, *value[1:]) for before, value in zip(found or [()] * self.size, values, strict=True)]
        return found

    def begin(self, parts: Mapping[str, tuple[str, str]], occasion: Occasion = Occasion.START) -> None:
        """Begin something together, and make sure that ranks agree: a run waits for ranks that are still in the one before.

        Args:
            parts: by name a digest (16 hexadecimal digits) and the same in words.

        Raises:
            RunError: a part differs, or a rank begins something else; on every rank.
        """
        said = b"".join(bytes.fromhex(digest[:16].rjust(16, "0")) for digest, _ in parts.values())
        while True:
            told = self._meet(occasion, said)
            occasions = [other for other, _ in told]
            if all(other is occasion for other in occasions):
                break
            if not {Occasion.STEP, Occasion.END} & set(occasions):
                places = ", ".join(f"rank {rank} {_IN_WORDS[other]}" for rank, other in enumerate(occasions))
                raise RunError(f"ranks are at different places: {places}; {_MEND}")
        differ = [
            name for place, name in enumerate(parts) if len({message[8 * place : 8 * place + 8] for _, message in told}) > 1
        ]
        if differ:
            words: list[Any] = [None] * self.size
            distributed.all_gather_object(words, {name: parts[name][1] for name in differ}, group=self.process_group)
            texts = [f"{name}: " + "; ".join(f"rank {r} has {w[name]}" for r, w in enumerate(words)) for name in differ]
            raise RunError(f"ranks do not decide alike. {'. '.join(texts)}. Mend: {_MEND}")

    def ends_alike(self, digest: str) -> bool:
        """At the end of a run: whether every rank is there, with the same digest (16 hexadecimal digits)."""
        if not self.together:
            return False
        told = self._meet(Occasion.END, bytes.fromhex(digest))
        self.together = all(occasion is Occasion.END for occasion, _ in told)
        return self.together and len({said for _, said in told}) == 1

    def from_first(self, make: Callable[[], T]) -> T:
        """What ``make`` returns on rank 0, on every rank; the others do not call it. It has to be picklable.

        Raises:
            RunError: it raised, on the other ranks; on rank 0 its own exception.
        """
        made: list[Any] = [None, ""]
        try:
            if self.rank == 0:
                made[0] = make()
        except Exception as error:
            made[1] = f"{type(error).__name__}: {error}"
            raise
        finally:
            group = self.process_group
            first = 0 if group is None else distributed.get_global_rank(group, 0)
            distributed.broadcast_object_list(made, src=first, group=group, device=self._device)
        if made[1]:
            raise RunError(f"rank 0 failed: {made[1]}")
        value: T = made[0]
        return value

    def _meet(self, occasion: Occasion, said: bytes) -> list[tuple[Occasion, bytes]]:
        """What every rank says, in the order of ranks."""
        message = bytes([occasion]) + said
        mine = torch.frombuffer(bytearray(message.ljust(SIZE, b"\0")), dtype=torch.uint8).to(self._device)
        theirs = [torch.empty_like(mine) for _ in range(self.size)]
        distributed.all_gather(theirs, mine, group=self.process_group)
        table = torch.stack(theirs).cpu().numpy()
        return [(Occasion(row[0]), row[1:].tobytes()) for row in table]

    def __repr__(self) -> str:
        return f"<rank {self.rank} of {self.size}>"


def _device_of(group: Any) -> torch.device:
    """Where tensors have to be that this group exchanges: the CPU where it can."""
    kinds = [part.partition(":")[0] for part in str(distributed.get_backend_config(group)).split(",")]
    if "cpu" in kinds:
        return torch.device("cpu")
    return torch.device(kinds[0], torch.get_device_module(kinds[0]).current_device())
