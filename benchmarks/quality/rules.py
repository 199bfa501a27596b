"""Rules of others, written from their formulas and run on a `Bypass` from outside.

TeaCache (Liu et al., arXiv 2411.19108): the relative L1 change of the first block's input, modulated by the timestep,
rescaled by a polynomial fitted once per model, is added up from step to step; the stack computes when the sum reaches a
threshold. EasyCache (Zhou et al., arXiv 2507.02860): the change of the output is taken to be k times the change of the
input, k measured at the last computed step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from attrs import define, field
from benchmarks.quality.bypass import Bypass

from torch import Tensor, nn

DEGREE = 4


def relative_change(new: Tensor, old: Tensor) -> float:
    """Mean absolute change over mean absolute value of the old."""
    return float((new - old).abs().mean() / old.abs().mean())


@define
class Accumulator:
    """TeaCache's arithmetic for one stream: `computes(change)` once a step; the first and the last step always compute."""

    threshold: float
    last: int
    polynomial: Sequence[float] = (1.0, 0.0)
    total: float = 0.0
    step: int = field(default=0, init=False)

    def computes(self, change: float | None) -> bool:
        """``change``: of the modulated input since the step before; None at the first step."""
        must = change is None or self.step in (0, self.last)
        if not must:
            self.total += float(np.polyval(self.polynomial, change))
        self.step += 1
        if must or self.total >= self.threshold:
            self.total = 0.0
            return True
        return False


def modulated(block: nn.Module, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
    """What the timestep makes of the first block's input; where the block does not tell (Wan), the timestep's projection."""
    if "temb" in kwargs and hasattr(block, "norm1"):
        out = block.norm1(hidden, emb=kwargs["temb"])
        return out[0] if isinstance(out, tuple) else out
    projection: Tensor = kwargs["args"][2]
    return projection


class TeaCache(Bypass):
    """``polynomial``: highest power first, as `fit` gives it; ``(1, 0)`` leaves the change as it is."""

    def __init__(self, network: Any, threshold: float, polynomial: Sequence[float] = (1.0, 0.0)) -> None:
        super().__init__(network)
        self.threshold, self.polynomial = threshold, polynomial

    def start(self) -> None:
        super().start()
        self.before: dict[str, Tensor] = {}
        self.sums: dict[str, Accumulator] = {}

    def decide(self, stream: str, step: int, hidden: Tensor, block: nn.Module, kwargs: dict[str, Any]) -> bool:
        new = modulated(block, hidden, kwargs)
        old = self.before.get(stream)
        self.before[stream] = new
        rule = self.sums.setdefault(stream, Accumulator(self.threshold, len(self.sigmas) - 1, self.polynomial))
        return rule.computes(None if old is None else relative_change(new, old))


class TeaCacheFit(TeaCache):
    """A full run that gathers changes of the modulated input and of the stack's output, for the polynomial."""

    def __init__(self, network: Any) -> None:
        super().__init__(network, threshold=-1.0)
        self.pairs: list[tuple[float, float]] = []

    def decide(self, stream: str, step: int, hidden: Tensor, block: nn.Module, kwargs: dict[str, Any]) -> bool:
        new, old = modulated(block, hidden, kwargs), self.before.get(stream)
        self.before[stream] = new
        self.change = None if old is None else relative_change(new, old)
        self.hidden = hidden
        return True

    def learn(self, stream: str, step: int, residual: Tensor) -> None:
        output = self.hidden + residual
        if self.change is not None:
            self.pairs.append((self.change, relative_change(output, self.kept[stream])))
        self.kept[stream] = output

    def fit(self, degree: int = DEGREE) -> tuple[float, ...]:
        """Least squares, highest power first."""
        inputs, outputs = np.array(self.pairs).T
        return tuple(map(float, np.polyfit(inputs, outputs, degree)))


@define
class Rate:
    """EasyCache's arithmetic: `computes(...)` once a step, then `measured(...)` after a computed one."""

    threshold: float
    warmup: int
    last: int
    rate: float | None = None
    total: float = 0.0
    step: int = field(default=0, init=False)

    def computes(self, input_change: float, output_size: float) -> bool:
        """Mean absolute change of the model's input since the step before, mean absolute value of its output there."""
        must = self.step < self.warmup or self.step == self.last or self.rate is None
        self.step += 1
        if not must and self.rate is not None:
            self.total += self.rate * input_change / output_size
        if must or self.total >= self.threshold:
            self.total = 0.0
            return True
        return False

    def measured(self, input_change: float, output_change: float) -> None:
        self.rate = output_change / input_change


class EasyCache:
    """On the whole model's input and output; decided on the first stream of a step, followed by the others."""

    def __init__(self, network: Any, threshold: float, warmup: int = 2) -> None:
        self.network, self.threshold, self.warmup = network, threshold, warmup
        self.name = ""
        self.computed: list[tuple[str, bool]] = []

    @property
    def fraction(self) -> float:
        return sum(done for _, done in self.computed) / len(self.computed)

    @contextmanager
    def run(self, sigmas: list[float]) -> Iterator[None]:
        self.rule = Rate(self.threshold, self.warmup, len(sigmas) - 1)
        self.offset: dict[str, Tensor] = {}
        self.input: Tensor | None = None
        self.output: Tensor | None = None
        self.now, self.lead, self.computed = True, "", []
        original = self.network.forward
        self.network.forward = lambda **kwargs: self._forward(original, kwargs)
        try:
            yield
        finally:
            del self.network.forward

    @contextmanager
    def stream(self, name: str) -> Iterator[None]:
        self.name = name
        self.lead = self.lead or name
        yield

    def _forward(self, original: Any, kwargs: dict[str, Any]) -> Any:
        hidden: Tensor = kwargs["hidden_states"]
        leads = self.name == self.lead
        if leads:
            change = 0.0 if self.input is None else float((hidden - self.input).abs().mean())
            size = 1.0 if self.output is None else float(self.output.abs().mean())
            self.now = self.rule.computes(change, size)
        self.computed.append((self.name, self.now))
        output = original(**kwargs)[0] if self.now else hidden + self.offset[self.name]
        if self.now:
            self.offset[self.name] = output - hidden
        if leads:
            if self.now and self.output is not None and change > 0:
                self.rule.measured(change, float((output - self.output).abs().mean()))
            self.input, self.output = hidden, output
        return (output,)
