"""Following the blocks of a stack through one computed call, to understand all calls like it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from magpolicy_torch.blocks._entry import Entry
from magpolicy_torch.blocks._observed import ObservedLayout, Returned, places_of
from magpolicy_torch.blocks._pattern import BlockStates, Called, ForwardPattern, Sources
from magpolicy_torch.blocks._stack import BlockStack
from magpolicy_torch.blocks._tokens import bounds, entering, leaving
from magpolicy_torch.evaluation._call_spec import CallSpec
from magpolicy_torch.evaluation._parts import read, state_in, version
from magpolicy_torch.evaluation._target import Pairs
from magpolicy_torch.evaluation._why import Why
from magpolicy_torch.residuals._arithmetic import Base, counted_from
from torch import Tensor


class Observation:
    """One call: its blocks report to it, and at the end it tells what they were given and returned.

    Args:
        stack: the blocks.
        entry: makes what enters the stack of what the first of them is passed.
    """

    def __init__(self, stack: BlockStack, entry: Entry | None = None) -> None:
        self.stack, self.entry = stack, entry
        self.problem = ""
        """Why calls like this one cannot be bypassed, in words; empty if they can."""
        self.pairs: Pairs = ()
        """Once the call is through: what came out of the stack and what went in."""
        self._layout = ObservedLayout.of(stack.kinds, stack.layouts)
        self._order: list[int] = []
        self._called: dict[int, Called] = {}
        self._branches: dict[int, tuple[Sources, Returned]] = {}
        self._patterns: dict[int, ForwardPattern] = {}
        self._touched: set[int] = set()
        self._in_place = False
        # The block before: its index, its result, and what it saw, with how often each had been written to by then. They are
        # held: a tensor made since could have the id of one that is gone.
        self._previous: tuple[int, Any, dict[int, tuple[Tensor, int]]] | None = None
        self._input: Tensor | None = None  # image tokens of the stack's input, as the model holds them
        self._copy: Tensor | None = None  # the same before the model could write to them
        self._second: Tensor | None = None  # a copy of the second stream at the stack's input
        self._bases: tuple[Base | None, Base | None] = (None, None)
        self._output: tuple[Tensor, Tensor] | None = None  # what left the stack, and a copy of it

    def block(self, index: int, block: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Block ``index`` is called."""
        # Blocks in between may be left out (skip-layer guidance); the first one may not, nor may any run twice.
        if index <= (self._order[-1] if self._order else -1) or (index and not self._order):
            self._fail(Why.ORDER)
        self._order.append(index)
        if self.problem:
            return block(*args, **kwargs)
        called = self._called[index] = self.stack.arguments[index].called(args, kwargs)
        states = read(called[0], *(self.entry(args, kwargs) if self.entry is not None and index == 0 else (args, kwargs)))
        self._before(index, states)
        self._previous = None  # the model is done with that result; holding on to it would cost memory
        result = block(*args, **kwargs)
        if not self.problem:
            self._after(index, states, result)
        return result

    def branch(self, index: int, block: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A module beside the stack is called."""
        sources, _, _ = self.stack.side_arguments[index].called(args, kwargs)
        states = read(sources, args, kwargs)
        result = block(*args, **kwargs)
        returned = Returned.of(result, states)
        if returned is not None:
            self._branches[index] = sources, returned
        return result

    def spec(self) -> CallSpec | None:
        """What the call has shown; ``None`` if calls like it cannot be bypassed."""
        if not self.problem and (not self._order or self._order[-1] != len(self.stack) - 1):
            self._fail(Why.LEFT_OUT)
        if self.problem:
            return None
        if self._output is not None and not torch.equal(*self._output):
            self._in_place = True
        self._output = None
        order, touched = tuple(self._order), frozenset(self._touched)
        layout, entry, bases = self._layout, self.entry, self._bases
        return CallSpec(order, self._patterns, layout.side, self._in_place, touched, self._branches, entry, bases)

    def _fail(self, why: Why, **about: object) -> None:
        self.problem = self.problem or why.says(**about)
        self._previous = self._input = self._copy = self._second = None

    def _name(self, index: int) -> str:
        return f"block {index} ({self.stack.kinds[index].__name__})"

    def _before(self, index: int, states: BlockStates) -> None:
        """Before block ``index`` computes: note the stack's input, or what the block before returned."""
        hidden, layout = states.hidden, self.stack.layouts[index]
        if hidden is None:
            self._fail(Why.NO_TENSOR, block=self._name(index))
        elif index == 0:
            image = entering(layout, hidden)
            if image is None:
                self._fail(Why.FEW_TOKENS, block=self._name(index))
                return
            self._input = image.detach()
            self._copy = self._input.clone()
            self._second = None if states.second is None else states.second.detach().clone()
        else:
            self._link(index, states, hidden)

    def _link(self, index: int, states: BlockStates, hidden: Tensor) -> None:
        layout, entered = self.stack.layouts[index], self._input
        assert entered is not None
        if self._previous is not None:
            before, result, seen = self._previous
            self._layout.link(before, result, states)
            if any(tensor is not None and seen.get(id(tensor), (None, -1))[1] != version(tensor) for tensor in states):
                self._touched.add(index)
            more = hidden.ndim == 3 and hidden.shape[1] > entered.shape[1]
            if more and self._layout.side is None and layout.open:
                self._layout.locate_text(before, result, hidden)
        told = hidden.numel() == entered.numel() if layout.swapped else bounds(layout, self._layout.side, hidden, entered.shape)
        if told in (None, False):
            self._fail(Why.WHICH_TOKENS, block=self._name(index))

    def _after(self, index: int, states: BlockStates, result: Any) -> None:
        returned = Returned.of(result, states)
        if returned is None:
            self._fail(Why.STRANGE_RESULT, block=self._name(index), kind=type(result).__name__)
            return
        self._layout.returned[index] = returned
        if index == len(self.stack) - 1:
            self._finish(index, states, result)
        else:
            seen = [*states, *(places_of(result) or ())]
            self._previous = index, result, {id(tensor): (tensor, version(tensor)) for tensor in seen if tensor is not None}

    def _finish(self, last: int, states: BlockStates, result: Any) -> None:
        """After the last block: the pattern of each, and what entered and left the stack."""
        whole = self.stack.scope == "model"
        self._layout.resemble(last, result, states)
        if whole:
            self._layout.lead(last)
        for index, called in self._called.items():
            at = self._layout.position(index)
            pattern = None if at is None else self._layout.returned[index].pattern(at, called, free=whole)
            if pattern is None:
                told = "" if at is not None else "; if it did, a Layout with result= and text_result= says which is which"
                self._fail(Why.OTHER_STATES, block=self._name(index), told=told)
                return
            self._patterns[index] = pattern
        before, copy, pattern = self._input, self._copy, self._patterns[last]
        assert before is not None
        assert copy is not None
        assert states.hidden is not None
        after, second = state_in(pattern, 0, result), state_in(pattern, 2, result)
        if not whole:
            after = leaving(self.stack.layouts[last], self._layout.side, states.hidden, after, before.shape)
        if after is None or after.device != before.device:
            self._fail(Why.OTHER_IMAGE)
        elif second is not None and self._second is not None and second.shape != self._second.shape:
            self._fail(Why.OTHER_SECOND)
        else:
            # Waits for the device, once a kind of call: a model that writes into its stack's input needs the copy every time.
            self._in_place = not torch.equal(before, copy)
            self._output = after, after.detach().clone()
            entered, left = [copy], [self._output[1]]
            if second is not None and self._second is not None:
                entered.append(self._second)
                left.append(second)
            bases = [Base.of(*pair) for pair in zip(entered, left, strict=True)]
            self._bases = bases[0], bases[1] if len(bases) > 1 else None
            from_here = [counted_from(*each) for each in zip(bases, entered, left, strict=True)]
            self.pairs = [(out, base) for out, base in zip(left, from_here, strict=True) if base is not None]
        self._input = self._copy = self._second = None
