"""What an ordinary run shows of its residuals while it computes: a few elements of each, compared when the run is over.

Measuring must not be felt. So a computed evaluation costs one gather of ``ROWS`` elements of each channel, and inner products
are formed once, at the end of the run. In each channel other tokens are looked at: all channels and many tokens are seen.
"""

from __future__ import annotations

from attrs import Factory, define

import torch
from magpolicy import ArgumentError
from magpolicy.adapter import MeasuredPart, digest
from magpolicy_torch.ranks._group import RankGroup
from magpolicy_torch.residuals._arithmetic import CHUNK, whole, widest
from torch import Tensor

ROWS = 128
"""Elements of each channel that are looked at, at most."""
HELD = 32 * 2**20
"""Bytes that are held of a stream during a run, at most."""


@define(eq=False)
class ResidualSamples:
    """Elements of the residuals that a run of ``steps`` evaluations computes.

    The host does not wait for a device before :meth:`measured`.
    """

    __module__ = "magpolicy_torch"

    steps: int
    _taken: dict[tuple[str, int], Tensor] = Factory(dict)
    _chosen: dict[tuple[int, int, torch.device], Tensor] = Factory(dict)
    usable: bool = True
    """Whether what was measured fits together: all residuals of one shape, one of a stream and step."""

    def add(self, stream: str, residual: Tensor, channel_dim: int = -1, *, step: int) -> None:
        """Look at the residual of ``stream`` at ``step``; ``channel_dim`` is its dimension of channels."""
        if not self.usable:
            return
        try:
            new = self._few(whole(residual.detach()), channel_dim)
        except RuntimeError:  # no room, or a kind of tensor that has no gather: the run goes on all the same
            self.usable = False
            self.clear()
            return
        like = next(iter(self._taken.values()), new)
        self.usable = new.shape == like.shape and new.device == like.device and (stream, step) not in self._taken
        self._taken[stream, step] = new
        if not self.usable:
            self.clear()

    def clear(self) -> None:
        """Free every tensor."""
        self._taken.clear()
        self._chosen.clear()

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self._taken.values())

    def measured(self, group: RankGroup | None = None) -> MeasuredPart | None:
        """Inner products of all that was looked at; waits for the device. ``None``: nothing that is of use.

        Args:
            group: the ranks of the run, each of which calls this; means over all of them, by the elements of each.
        """
        try:
            gram = _gram(list(self._taken.values())) if self._taken else None
        except RuntimeError:  # no room for it
            gram = None
        places = list(self._taken)
        if group is not None and not group.ends_alike(digest(places if gram is not None else None)):
            return None
        if gram is None:
            return None
        if group is not None:
            count = gram.new_tensor([next(iter(self._taken.values())).numel()])
            sums = group.sum(torch.cat([gram.flatten() * count, count]))
            gram = (sums[:-1] / sums[-1]).view_as(gram)
        try:
            return MeasuredPart(places, gram.cpu().double().numpy())
        except ArgumentError:  # NaN, or zero everywhere
            return None

    @torch.no_grad()
    def _few(self, residual: Tensor, channel_dim: int) -> Tensor:
        """(rows, channels) of a residual: in each channel the same tokens at every step."""
        flat = residual.movedim(channel_dim, -1).flatten(0, -2) if residual.ndim > 1 else residual.reshape(1, -1)
        total, channels = flat.shape
        rows = max(1, min(ROWS, HELD // (channels * flat.element_size() * self.steps)))
        if total <= rows:
            return flat.clone()
        key = total, channels, flat.device
        if key not in self._chosen:
            generator = torch.Generator().manual_seed(total)
            self._chosen[key] = torch.randint(total, (rows, channels), generator=generator).to(flat.device)
        return flat.gather(0, self._chosen[key])


@torch.no_grad()
def _gram(residuals: list[Tensor]) -> Tensor:
    """(M, M) means of products of the elements, in float64 where the device has it."""
    flat = [residual.flatten() for residual in residuals]
    wide = widest(flat[0].device)
    count, elements = len(flat), flat[0].numel()
    size = max(1, CHUNK // count)
    total = torch.zeros(count, count, dtype=wide, device=flat[0].device)
    for start in range(0, elements, size):
        part = torch.stack([one[start : start + size] for one in flat]).to(wide)
        total += part @ part.T
    return total / elements
