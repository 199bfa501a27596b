"""The block stack of a model, bypassed from outside: the model's own forward and its loop stay as they are.

Each block gets an instance attribute ``forward`` that asks for the current call. Without one the block runs as ever; what it
does in a call is in ``_call``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from types import NoneType
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from magpolicy import AdapterError, ArgumentError
from magpolicy_torch.blocks._layout import Arguments, Layout, flags
from magpolicy_torch.blocks._patch import Patch
from magpolicy_torch.blocks._unwrap import unwrap
from torch import nn

if TYPE_CHECKING:
    from magpolicy_torch.evaluation._call import Call

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
_DEPTH = 3  # how deep below wrappers a model's lists are looked for

Layouts = Layout | Mapping[type[nn.Module], Layout] | Sequence[Layout] | None

_current: ContextVar[Call | Unwatched | None] = ContextVar("magpolicy_torch_call", default=None)
_claimed: WeakSet[nn.Module] = WeakSet()


class Unwatched:
    """A call of ``stack`` in which the blocks are on their own."""

    def __init__(self, stack: BlockStack) -> None:
        self.stack = stack

    def block(self, index: int, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Block ``index`` was called."""
        return original(*args, **kwargs)

    beside = block


# A with block of its own would be a tenth of what a skip may cost.
enter, leave = _current.set, _current.reset


@contextmanager
def visiting(call: Call) -> Iterator[None]:
    """Blocks of ``call.stack`` that run inside ask ``call`` what to do."""
    token = _current.set(call)
    try:
        yield
    finally:
        _current.reset(token)


def visited(stack: BlockStack) -> bool:
    """Whether a call through ``stack`` is under way here."""
    return current(stack) is not None


def current(stack: BlockStack) -> Call | Unwatched | None:
    """The call through ``stack`` that is under way here."""
    call = _current.get()
    return call if call is not None and call.stack is stack else None


class _BlockPatch(Patch):
    """In front of one block. On a skip this is all that runs, once a block, so it is short."""

    def __init__(self, stack: BlockStack, index: int, block: nn.Module) -> None:
        super().__init__(block, lambda original, args, kwargs: original(*args, **kwargs))
        self._stack, self._index = stack, index

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = _current.get()
        if call is None or call.stack is not self._stack or self._around is None or isinstance(call, Unwatched):
            return self._original(*args, **kwargs)
        index = self._index
        echo = None if call.echoes is None else call.echoes.get(index)
        if (
            echo is None
            or call.expected[len(call.order)] != index
            or len(kwargs) != echo.arguments
            or (echo.flags and flags(kwargs) != echo.flags)
        ):
            return call.block(index, self._original, args, kwargs)
        if call.skipping:
            try:
                result = echo.result(args, kwargs)
            except LookupError:
                return call.block(index, self._original, args, kwargs)
            call.order.append(index)
            return result
        call.order.append(index)
        result = self._original(*args, **kwargs)
        if type(result) is not echo.kind:
            call.lost()
        return result


class BlockStack:
    """The blocks a model runs, in order of execution.

    Args:
        blocks: modules, or one or several ``ModuleList``.
        layout: where hidden states sit in a block's arguments and result, one for all, by class of block, or one each.
            ``None``: told from argument names; places in a result are found on the first computed call of a run.
        beside: modules that run before or between the blocks and work for them alone (control branches, adapters): left out on
            a skip too. The hidden states they are given must be of the shape of all they return.

    Raises:
        ArgumentError: no blocks, one twice, or something that is no module.
        AdapterError: a block's arguments do not tell which one holds the hidden states.
    """

    __module__ = "magpolicy_torch"

    def __init__(self, blocks: Iterable[nn.Module], *, layout: Layouts = None, beside: Iterable[nn.Module] = ()) -> None:
        self.blocks = tuple(_flat(blocks))
        if not self.blocks or len(set(map(id, self.blocks))) < len(self.blocks):
            raise ArgumentError(f"blocks holds {len(self.blocks)} blocks; give at least one, each of them once")
        plain = [unwrap(block) for block in self.blocks]  # a compiled block hides the names of its arguments
        self.kinds = tuple(type(block) for block in plain)
        if not isinstance(layout, (Layout, Mapping, NoneType)) and len(layout) != len(self.blocks):
            raise ArgumentError(f"layout holds {len(layout)} layouts for {len(self.blocks)} blocks; give one each, or one")
        self.layouts = tuple(_layout_of(index, block, layout) for index, block in enumerate(plain))
        self.arguments = tuple(Arguments(lay, b.forward) for lay, b in zip(self.layouts, plain, strict=True))
        self.beside = tuple(_flat(beside))
        self.beside_arguments = tuple(
            Arguments(Layout.of(b.forward, type(b).__name__, first=True), b.forward) for b in self.beside
        )
        self.scope = "stack"
        """What is bypassed: the block ``"stack"``, or the whole ``"model"``."""
        self._patches: list[Patch] = []
        self._lock = threading.Lock()

    @classmethod
    def find(cls, module: nn.Module) -> BlockStack:
        """The stack of ``module``: its ``ModuleList`` children that bear a block stack's name, or else its only one.

        Raises:
            AdapterError: there is none, or it cannot be told which; the message says how to describe it.
        """
        return cls(cls.lists(module))

    @staticmethod
    def lists(module: nn.Module) -> list[nn.ModuleList]:
        """The lists :meth:`find` makes a stack of, in order of execution.

        Raises:
            AdapterError: as :meth:`find`.
        """
        level = [("", module)]
        for depth in range(_DEPTH):
            found = {path: lists for path, parent in level if (lists := _lists(parent, named=depth > 0))}
            if len(found) > 1:
                raise AdapterError(
                    f"target={type(module).__name__} has block stacks in {', '.join(map(repr, found))}; attach to one of them, "
                    "or name its lists in order of execution, blocks='name,other_name'"
                )
            for lists in found.values():
                return _choose(type(module).__name__, lists)
            # What stands in a ModuleList is a block, not a model: lists nested in blocks are not looked at.
            level = [
                (f"{path}.{name}".lstrip("."), child)
                for path, parent in level
                for name, child in parent.named_children()
                if not isinstance(child, nn.ModuleList)
            ]
        raise AdapterError(
            f"target={type(module).__name__} has no ModuleList of blocks; name it, blocks='name', or use scope='model'"
        )

    @classmethod
    def of(cls, module: nn.Module, blocks: Any) -> BlockStack:
        """What a user's ``blocks=`` means for ``module``: a stack, modules, lists, or attribute names.

        Raises:
            ArgumentError: it means nothing here, or a block is not part of ``module``.
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
                raise ArgumentError(f"blocks holds a {type(block).__name__} that is not part of {type(module).__name__}")
        return stack

    @classmethod
    def whole(cls, module: nn.Module) -> BlockStack:
        """The whole of ``module`` as one block (U-Nets, black boxes).

        Raises:
            AdapterError: its forward has no argument that could be the sample.
        """
        stack = cls([module], layout=Layout.of(module.forward, type(module).__name__, first=True))
        stack.scope = "model"
        return stack

    def __len__(self) -> int:
        return len(self.blocks)

    def __repr__(self) -> str:
        names = dict.fromkeys(kind.__name__ for kind in self.kinds)
        return f"<BlockStack of {len(self)}: {', '.join(names)}>"

    @contextmanager
    def bound(self) -> Iterator[BlockStack]:
        """Installed inside the with block only, for hosts whose model has to be untouched between calls."""
        self.install()
        try:
            yield self
        finally:
            self.uninstall()

    def claim(self) -> None:
        """Nobody else may attach to these blocks until :meth:`release`.

        Raises:
            AdapterError: somebody has claimed one of them.
        """
        if any(map(taken, self.blocks)):
            raise AdapterError("blocks are attached already; detach() the handle that holds them first")
        _claimed.update(self.blocks)

    def release(self) -> None:
        """Undo :meth:`claim`, and :meth:`install_once`."""
        self.uninstall()
        _claimed.difference_update(self.blocks)

    def install_once(self) -> None:
        """:meth:`install`, unless that was done."""
        with self._lock:
            if not self._patches:
                self.install()

    def install(self) -> None:
        """Put the bypass around every block.

        Raises:
            AdapterError: a block has one already. Nothing is changed then.
        """
        if any(map(Patch.on, (*self.blocks, *self.beside))):
            raise AdapterError("blocks are attached already; detach() the handle that holds them first")
        self._patches = [_BlockPatch(self, index, block) for index, block in enumerate(self.blocks)]
        self._patches += [Patch(block, partial(self._pass_by, index)) for index, block in enumerate(self.beside)]
        for patch in self._patches:
            patch.install()

    def uninstall(self) -> None:
        """Leave every block as it was found."""
        patches, self._patches = self._patches, []
        for patch in patches:
            patch.remove()

    def _pass_by(self, index: int, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = _current.get()
        if call is None or call.stack is not self:
            return original(*args, **kwargs)
        return call.beside(index, original, args, kwargs)


def taken(block: nn.Module) -> bool:
    """Whether somebody has attached to ``block``."""
    return block in _claimed or Patch.on(block)


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
    return {n: m for n, m in lists.items() if n in STACK_NAMES or (len(m) > 1 and len(set(map(type, m))) == 1)}


def _choose(target: str, lists: Mapping[str, nn.ModuleList]) -> list[nn.ModuleList]:
    """The lists that make up the stack, in order of execution."""
    known = STACK_NAMES & lists.keys()
    together = next((names for names in _NAMES if known <= set(names)), ()) if known else tuple(lists)
    chosen = [name for name in together if name in lists]
    kinds = {type(block) for name in chosen for block in lists[name]}
    # More blocks of the same class outside run who knows where: in between (spatial and temporal ones), or in a branch.
    others = [name for name in lists if name not in chosen and kinds & set(map(type, lists[name]))]
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
        if type(block) in layout:
            return layout[type(block)]
    elif layout is not None:
        return layout[index]
    return Layout.of(block.forward, type(block).__name__)


def _child(module: nn.Module, path: str) -> nn.Module:
    try:
        return module.get_submodule(path)
    except AttributeError:
        known = [name for name, child in module.named_children() if isinstance(child, nn.ModuleList)]
        raise ArgumentError(
            f"blocks={path!r} is no submodule of {type(module).__name__}; its ModuleLists are: {', '.join(known) or 'none'}"
        ) from None
