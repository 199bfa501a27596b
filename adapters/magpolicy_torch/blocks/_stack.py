"""The block stack of a model: found by the names of its lists, or described."""

from __future__ import annotations

import operator
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import NoneType
from typing import Any
from weakref import WeakKeyDictionary

from magpolicy import AdapterError, ArgumentError
from magpolicy_torch.blocks._layout import Layout
from magpolicy_torch.blocks._patch import Patch
from magpolicy_torch.blocks._pattern import Arguments
from magpolicy_torch.blocks._unwrap import own_class, own_name, unwrap
from torch import nn

# Names under which model code keeps the blocks that make up its depth, together with what runs right after them, in that order;
# refiners, embedders and control branches have others.
_NAMES = (
    ("transformer_blocks", "single_transformer_blocks"),
    ("joint_transformer_blocks", "single_transformer_blocks"),
    ("double_blocks", "single_blocks"),
    ("double_stream_blocks", "single_stream_blocks"),
    ("double_layers", "single_layers"),
    ("blocks",),
    ("layers",),
    ("joint_blocks",),
    ("visual_transformer_blocks",),
)
STACK_NAMES = frozenset(name for names in _NAMES for name in names)
# What goes down and what comes up again in a U-Net: no list of such a model, and none inside it, is all of its depth.
_U_NET_NAMES = ({"down_blocks", "up_blocks"}, {"input_blocks", "output_blocks"})
_DEPTH = 3  # how deep below wrappers a model's lists are looked for

Layouts = Layout | Mapping[type[nn.Module], Layout] | Sequence[Layout] | None

_claimed: WeakKeyDictionary[nn.Module, weakref.ref[BlockStack]] = WeakKeyDictionary()
"""Blocks that somebody has attached to, with the stack that claimed each."""


class BlockStack:
    """The blocks of a model, in the order in which they run.

    Args:
        blocks: modules, or one or several ``ModuleList``.
        layout: which argument of a block, and which part of its result, holds the hidden states: one for all blocks, one for
            each class of block, or one for each block. ``None``: the names of arguments and the first computed call show it.
        side_branches: modules that run before or between the blocks and work for them alone (control branches, adapters). A
            skip leaves them out too. All that they return must have the shape of the hidden states that they are given.

    Raises:
        ArgumentError: no blocks, one twice, or something that is no module.
        AdapterError: the names of a block's arguments do not say which one holds the hidden states.
    """

    __module__ = "magpolicy_torch"

    def __init__(self, blocks: Iterable[nn.Module], *, layout: Layouts = None, side_branches: Iterable[nn.Module] = ()) -> None:
        items = list(blocks)
        self.blocks: tuple[nn.Module, ...] = tuple(_flat(items))
        distinct = [set(map(id, _flat([item]))) for item in items]  # one that stands twice in a list runs twice
        if not self.blocks or len(set().union(*distinct)) < sum(map(len, distinct)):
            raise ArgumentError(f"blocks holds {len(self.blocks)} blocks; give at least one, each of them once")
        originals = [unwrap(block) for block in self.blocks]  # what is compiled hides the names of its arguments
        self.kinds: tuple[type, ...] = tuple(map(own_class, originals))
        self.entrance: nn.Module | None = originals[0]
        """The block whose hooks may change what enters the stack; ``None`` for a whole model, which undoes that at its end."""
        if not isinstance(layout, (Layout, Mapping, NoneType)) and len(layout) != len(self.blocks):
            raise ArgumentError(f"layout holds {len(layout)} layouts for {len(self.blocks)} blocks; give one each, or one")
        self.layouts: tuple[Layout, ...] = tuple(_layout_of(index, block, layout) for index, block in enumerate(originals))
        self.arguments: tuple[Arguments, ...] = tuple(
            Arguments(lay, b.forward) for lay, b in zip(self.layouts, originals, strict=True)
        )
        self.side_branches: tuple[nn.Module, ...] = tuple(_flat(side_branches))
        self.side_arguments: tuple[Arguments, ...] = tuple(
            Arguments(Layout.of(b.forward, own_name(b), first=True), b.forward) for b in map(unwrap, self.side_branches)
        )
        ends = (self.layouts[0], self.layouts[-1])
        self.described: bool = any(layout.swapped or not layout.open for layout in ends)
        """Whether layouts say where image tokens are among those that enter and leave the stack."""
        self.scope = "stack"
        """What is bypassed: the block ``"stack"``, or the whole ``"model"``."""

    @property
    def description(self) -> str:
        """How many blocks of which classes: ``"19 FluxTransformerBlock, 38 FluxSingleTransformerBlock"``."""
        counted = Counter(kind.__name__ for kind in self.kinds)
        return ", ".join(f"{count} {name}" for name, count in counted.items())

    @classmethod
    def find(cls, module: nn.Module) -> BlockStack:
        """The stack of ``module``: its ``ModuleList`` children with the usual names of block lists, or else its only one.

        Raises:
            AdapterError: there is no such list, or several lists fit; the message says how to describe the stack.
        """
        return cls(cls.lists(module))

    @staticmethod
    def lists(module: nn.Module) -> list[nn.ModuleList]:
        """The lists that :meth:`find` makes a stack of, in the order in which they run.

        Raises:
            AdapterError: as :meth:`find`.
        """
        names = {name for name, _ in module.named_children()}
        if any(pair <= names for pair in _U_NET_NAMES):
            raise AdapterError(f"target={own_name(module)} is a U-Net, which has no stack of blocks; use scope='model'")
        level = [("", module)]
        for depth in range(_DEPTH):
            found = {path: lists for path, parent in level if (lists := _lists(parent, named=depth > 0))}
            if len(found) > 1:
                raise AdapterError(
                    f"target={own_name(module)} has block stacks in {', '.join(map(repr, found))}; attach to one of them, "
                    "or name its lists in order of execution, blocks='name,other_name'"
                )
            for lists in found.values():
                return _choose(own_name(module), lists)
            # What stands in a ModuleList is a block, not a model: lists nested in blocks are not looked at.
            level = [
                (f"{path}.{name}".lstrip("."), child)
                for path, parent in level
                for name, child in parent.named_children()
                if not isinstance(child, nn.ModuleList)
            ]
        raise AdapterError(
            f"target={own_name(module)} has no ModuleList of blocks; name it, blocks='name', or use scope='model'"
        )

    @classmethod
    def of(cls, module: nn.Module, blocks: Any) -> BlockStack:
        """The stack of ``module`` that a user's ``blocks=`` describes: a stack, modules, lists, or names of attributes.

        Raises:
            ArgumentError: it describes no blocks, or a block is not part of ``module``.
            AdapterError: as :meth:`find`.
        """
        if blocks is None:
            return cls.find(module)
        if isinstance(blocks, str):
            return cls(_child(module, name.strip()) for name in blocks.split(","))
        if isinstance(blocks, BlockStack):
            stack = blocks
        elif isinstance(blocks, nn.Module):
            stack = cls([blocks])
        elif isinstance(blocks, Iterable):
            stack = cls(_child(module, item) if isinstance(item, str) else item for item in blocks)
        else:
            raise ArgumentError(f"blocks={blocks!r} is no module; give modules, ModuleLists or attribute names")
        inside = set(map(id, module.modules()))
        for block in stack.blocks:
            if id(block) not in inside:  # it would never be called, and every skip would be found out the hard way
                raise ArgumentError(f"blocks holds a {own_name(block)} that is not part of {own_name(module)}")
        return stack

    @classmethod
    def whole(cls, module: nn.Module) -> BlockStack:
        """The whole of ``module`` as one block (U-Nets, black boxes).

        Raises:
            AdapterError: its forward has no argument that could be the sample.
        """
        stack = cls([module], layout=Layout.of(module.forward, own_name(module), first=True))
        stack.scope, stack.entrance = "model", None
        return stack

    def __len__(self) -> int:
        return len(self.blocks)

    def __repr__(self) -> str:
        names = dict.fromkeys(kind.__name__ for kind in self.kinds)
        return f"<BlockStack of {len(self)}: {', '.join(names)}>"

    def claim(self) -> None:
        """Keep others from attaching to these blocks until :meth:`release`.

        Raises:
            AdapterError: one of them is claimed already.
        """
        if any(map(taken, self.blocks)):
            raise AdapterError("blocks are attached already, by another model's handle; detach() that one first")
        _claimed.update(dict.fromkeys(self.blocks, weakref.ref(self)))

    def release(self) -> None:
        """Undo :meth:`claim`. What another stack has claimed stays claimed."""
        for block in self.blocks:
            claimed = _claimed.get(block)
            if claimed is not None and claimed() is self:
                _claimed.pop(block, None)

    def alike(self, other: BlockStack) -> bool:
        """Whether ``other`` is the same blocks, bypassed in the same way."""
        mine, theirs = ((stack.scope, stack.layouts, [*stack.blocks, None, *stack.side_branches]) for stack in (self, other))
        return mine[:2] == theirs[:2] and len(mine[2]) == len(theirs[2]) and all(map(operator.is_, mine[2], theirs[2]))


def taken(block: nn.Module) -> bool:
    """Whether somebody has attached to ``block``."""
    claimed = _claimed.get(block)
    return (claimed is not None and claimed() is not None) or Patch.on(block)


def _flat(blocks: Iterable[nn.Module]) -> Iterator[nn.Module]:
    for item in blocks:
        if isinstance(item, nn.ModuleList):
            yield from item
        elif isinstance(item, nn.Module):
            yield item
        else:
            raise ArgumentError(f"blocks holds {item!r}, which is no module; give modules, ModuleLists or attribute names")


def _lists(parent: nn.Module, *, named: bool) -> dict[str, nn.ModuleList]:
    """The ModuleLists of ``parent`` that could be part of a stack; ``named``: only if one bears a stack's name."""
    lists = {n: m for n, m in parent.named_children() if isinstance(m, nn.ModuleList) and len(m) and "refiner" not in n}
    if named and STACK_NAMES.isdisjoint(lists):
        return {}
    return {n: m for n, m in lists.items() if n in STACK_NAMES or (len(m) > 1 and len(set(map(own_class, m))) == 1)}


def _choose(target: str, lists: Mapping[str, nn.ModuleList]) -> list[nn.ModuleList]:
    """The lists that make up the stack, in order of execution."""
    known = STACK_NAMES & lists.keys()
    together = next((names for names in _NAMES if known <= set(names)), ()) if known else tuple(lists)
    chosen = [name for name in together if name in lists]
    kinds = {own_class(block) for name in chosen for block in lists[name]}
    # More blocks of the same class outside run who knows where: in between (spatial and temporal ones), or in a branch.
    others = [name for name in lists if name not in chosen and kinds & set(map(own_class, lists[name]))]
    if not chosen or others or (not known and len(chosen) > 1):
        raise AdapterError(
            f"target={target} has several ModuleLists ({', '.join(lists)}) and it cannot be told which run one after another; "
            "name those in order of execution, blocks='name,other_name', or use scope='model'"
        )
    return [lists[name] for name in chosen]


def _layout_of(index: int, block: nn.Module, layout: Layouts) -> Layout:
    if isinstance(layout, Layout):
        return layout
    if isinstance(layout, Mapping):
        if own_class(block) in layout:
            return layout[own_class(block)]
    elif layout is not None:
        return layout[index]
    return Layout.of(block.forward, own_name(block))


def _child(module: nn.Module, path: str) -> nn.Module:
    try:
        return module.get_submodule(path)
    except AttributeError:
        known = [name for name, child in module.named_children() if isinstance(child, nn.ModuleList)]
        raise ArgumentError(
            f"blocks={path!r} is no submodule of {own_name(module)}; its ModuleLists are: {', '.join(known) or 'none'}"
        ) from None
