"""Small models of no host."""

from __future__ import annotations

from torch import Tensor, nn


class Rows(nn.Module):
    """Three layers in a row."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x
