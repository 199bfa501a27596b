"""Blocks bypassed from outside, by hand: what the rules of others run on here, and what residuals are measured with.

A `Bypass` follows the blocks of one network through each forward. At the first block it asks `decide` whether to compute;
if not, every block hands on what it got and the last one adds the residual it is told to. Independent of magpolicy's own
adapter on purpose: the lab should not judge an adapter with itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


def blocks_of(network: Any) -> list[nn.Module]:
    """The blocks in the order they run."""
    for names in (("transformer_blocks", "single_transformer_blocks"), ("blocks",), ("transformer_blocks",)):
        if all(hasattr(network, name) for name in names):
            return [block for name in names for block in getattr(network, name)]
    raise TypeError(f"{type(network).__name__}: no blocks known; add their attribute to blocks_of()")


class Bypass:
    """Base of the rules: `decide` whether to compute, `residual` is what is added if not, `learn` sees the true one.

    By itself it computes always; of the residuals that were computed, the last of each stream is held.
    """

    def __init__(self, network: Any) -> None:
        self.network = network
        self.blocks = blocks_of(network)
        self.name = ""
        self.step: dict[str, int] = {}
        self.sigmas: list[float] = []
        self.computed: list[tuple[str, bool]] = []
        self._skip: Tensor | None = None
        self._input: Tensor | None = None

    # What a rule says.

    def start(self) -> None:
        """A run begins."""
        self.kept: dict[str, Tensor] = {}

    def decide(self, stream: str, step: int, hidden: Tensor, block: nn.Module, kwargs: dict[str, Any]) -> bool:
        """Whether this evaluation computes. ``hidden`` is the stack's input."""
        return True

    def residual(self, stream: str, step: int, hidden: Tensor) -> Tensor:
        """What a skipped evaluation adds to the stack's input."""
        return self.kept[stream]

    def learn(self, stream: str, step: int, residual: Tensor) -> None:
        """The residual of an evaluation that computed."""
        self.kept[stream] = residual

    def corrected(self, stream: str, step: int, residual: Tensor) -> Tensor:
        """What an evaluation that computed adds; asked after `learn`."""
        return residual

    # How it is carried out.

    @contextmanager
    def run(self, sigmas: list[float]) -> Iterator[None]:
        self.sigmas, self.step, self.computed = sigmas, {}, []
        self.start()
        originals = [block.forward for block in self.blocks]
        for index, block in enumerate(self.blocks):
            block.forward = self._wrapped(index, block, originals[index])  # type: ignore[method-assign]
        try:
            yield
        finally:
            for block in self.blocks:
                del block.forward  # type: ignore[method-assign]

    @contextmanager
    def stream(self, name: str) -> Iterator[None]:
        self.name = name
        self.step.setdefault(name, 0)
        yield
        self.step[name] += 1

    def _wrapped(self, index: int, block: nn.Module, original: Callable[..., Any]) -> Callable[..., Any]:
        last = index == len(self.blocks) - 1

        def forward(*args: Any, **kwargs: Any) -> Any:
            hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            step = self.step[self.name]
            if index == 0:
                computes = self.decide(self.name, step, hidden, block, {**kwargs, "args": args})
                self.computed.append((self.name, computes))
                self._skip = None if computes else self.residual(self.name, step, hidden)
                self._input = hidden
            if self._skip is None:
                result = original(*args, **kwargs)
                if last:
                    result = self._finished(step, result)
                    self._input = None
                return result
            after = hidden + self._skip if last else hidden
            return (kwargs["encoder_hidden_states"], after) if "encoder_hidden_states" in kwargs else after

        return forward

    def _finished(self, step: int, result: Any) -> Any:
        """What the last block hands on, ``result`` being what it computed."""
        residual = (result[1] if isinstance(result, tuple) else result) - self._input
        self.learn(self.name, step, residual)
        corrected = self.corrected(self.name, step, residual)
        if corrected is residual:
            return result
        after = self._input + corrected
        return (result[0], after) if isinstance(result, tuple) else after

    @property
    def fraction(self) -> float:
        """Share of the evaluations of the last run that computed."""
        return sum(done for _, done in self.computed) / len(self.computed)


class Masked(Bypass):
    """A fixed mask."""

    def __init__(self, network: Any, mask: Any) -> None:
        super().__init__(network)
        self.mask = mask

    def decide(self, stream: str, step: int, hidden: Tensor, block: nn.Module, kwargs: dict[str, Any]) -> bool:
        return bool(self.mask[step])
