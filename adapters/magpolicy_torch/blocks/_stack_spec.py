"""What a host tells about the classes of its models, where their own code does not say where the block stack is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from attrs import frozen

from magpolicy import AdapterError
from magpolicy_torch.blocks._layout import Layout
from magpolicy_torch.blocks._stack import BlockStack
from magpolicy_torch.blocks._unwrap import own_class, own_name, unwrap
from torch import nn


@frozen
class StackSpec:
    """Describes the block stack of one class. Names in the model's code show what it leaves out."""

    blocks: str | None = None
    """Names of its lists of blocks, in order of execution, separated by commas."""
    layout: Layout | tuple[Layout, ...] | None = None
    """Where the blocks take and return hidden states; a tuple has one layout for each list. ``None``: argument names and the
    first computed call tell."""
    interleaved: bool = False
    """The lists take turns, block by block."""
    side_branches: Callable[[Any], Iterable[nn.Module]] | None = None
    """Given the model, returns the modules that work for the stack alone: a skip leaves them out too."""
    whole: bool = False
    """The class has no stack that can be separated: a skip leaves out the whole model (U-Nets)."""

    def stack(self, module: nn.Module) -> BlockStack:
        """The stack of ``module``, an instance of the class.

        Raises:
            AdapterError: its lists, or the arguments of its blocks, are not clear.
        """
        names = None if self.blocks is None else self.blocks.split(",")
        found: Iterable[Any] = BlockStack.lists(module) if names is None else map(module.get_submodule, names)
        lists = [list(each.values() if isinstance(each, nn.ModuleDict) else each) for each in found]
        told = self.layout if isinstance(self.layout, tuple) else (self.layout,) * len(lists)
        pairs = [[(block, layout or _layout(block)) for block in each] for layout, each in zip(told, lists, strict=True)]
        if self.interleaved:
            pairs = [list(turn) for turn in zip(*pairs, strict=True)]
        blocks, layouts = zip(*(pair for each in pairs for pair in each), strict=True)
        branches = () if self.side_branches is None else self.side_branches(module)
        return BlockStack(blocks, layout=layouts, side_branches=branches)


_FOUND = StackSpec()


class StackTable:
    """Finds the block stacks of a host's models.

    Args:
        specs: what the host tells, by class: its name, or its module below ``below`` and its name. Subclasses inherit.
        package: the host's package. Its classes that have no stack are skipped as a whole; those of others are refused.
        below: the module that keys begin at.
    """

    def __init__(self, specs: Mapping[str, StackSpec], *, package: str, below: str = "") -> None:
        self.specs = specs
        self._package, self._below = package, f"{below or package}."

    def spec(self, module: nn.Module) -> StackSpec | None:
        """What is told about the class of ``module``, or the nearest of its base classes."""
        for kind in own_class(module).__mro__:
            for key in (f"{kind.__module__.removeprefix(self._below)}.{kind.__name__}", kind.__name__):
                if key in self.specs:
                    return self.specs[key]
        return None

    def find(self, module: nn.Module) -> BlockStack | None:
        """The stack of ``module``; ``None`` if all of it is to be skipped.

        Raises:
            AdapterError: it is no class of the host, and its blocks cannot be told; the message says how to describe them.
        """
        module = unwrap(module)
        spec = self.spec(module) or _FOUND
        try:
            return None if spec.whole else spec.stack(module)
        except AdapterError:
            if not own_class(module).__module__.startswith(f"{self._package}."):
                raise
            return None


def _layout(block: nn.Module) -> Layout:
    block = unwrap(block)
    return Layout.of(block.forward, own_name(block))
