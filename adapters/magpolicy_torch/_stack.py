"""The block stack of a model, bypassed from outside: the model's own forward and its loop stay as they are.

Each block gets an instance attribute ``forward`` that asks for the current call. Without one the block runs as ever; what it
does in a call is in ``_call``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any

from magpolicy import AdapterError, ArgumentError
from magpolicy_torch._layout import Arguments, Layout
from magpolicy_torch._patch import Forward
from torch import nn

if TYPE_CHECKING:
    from magpolicy_torch._call import Call

# Names under which model code keeps the blocks that make up its depth; refiners, embedders and control branches have others.
STACK_NAMES = frozenset({
    "blocks", "double_blocks", "double_stream_blocks", "joint_blocks", "joint_transformer_blocks", "layers",
    "single_blocks", "single_stream_blocks", "single_transformer_blocks", "transformer_blocks", "visual_transformer_blocks",
})  # fmt: skip

Layouts = Layout | Mapping[type[nn.Module], Layout] | None

_current: ContextVar[Call | None] = ContextVar("magpolicy_torch_call", default=None)


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
    call = _current.get()
    return call is not None and call.stack is stack


class BlockStack:
    """The blocks a model runs, in order of execution.

    Args:
        blocks: modules, or one or several ``ModuleList``.
        layout: where hidden states sit in a block's arguments and result, one for all or by class of block. ``None``: told from
            argument names; places in a result are found on the first computed call of a run.

    Raises:
        ArgumentError: no blocks, one twice, or something that is no module.
        AdapterError: a block's arguments do not tell which one holds the hidden states.
    """

    def __init__(self, blocks: Iterable[nn.Module], *, layout: Layouts = None) -> None:
        self.blocks = tuple(_flat(blocks))
        if not self.blocks or len(set(map(id, self.blocks))) < len(self.blocks):
            raise ArgumentError(f"blocks holds {len(self.blocks)} blocks; give at least one, each of them once")
        self.kinds = tuple(type(block) for block in self.blocks)
        self.layouts = tuple(_layout_of(block, layout) for block in self.blocks)
        self.arguments = tuple(Arguments(lay, b.forward) for lay, b in zip(self.layouts, self.blocks, strict=True))
        self._patches: list[Forward] = []

    @classmethod
    def find(cls, module: nn.Module) -> BlockStack:
        """The stack of ``module``: its ``ModuleList`` children that bear a block stack's name, or else its only one.

        Raises:
            AdapterError: there is none, or it cannot be told which; the message says how to describe it.
        """
        lists = {name: child for name, child in module.named_children() if isinstance(child, nn.ModuleList) and len(child)}
        named = [child for name, child in lists.items() if name in STACK_NAMES]
        if named or len(lists) == 1:
            return cls(named or lists.values())
        found = f"several ModuleLists ({', '.join(lists)})" if lists else "no ModuleList"
        raise AdapterError(
            f"target={type(module).__name__} has {found} and none is named like a block stack; name yours in order of "
            "execution, blocks='name,other_name', or use scope='model'"
        )

    @classmethod
    def of(cls, module: nn.Module, blocks: Any) -> BlockStack:
        """What a user's ``blocks=`` means for ``module``: a stack, modules, lists, or attribute names.

        Raises:
            ArgumentError: it means nothing here.
            AdapterError: as :meth:`find`.
        """
        if blocks is None:
            return cls.find(module)
        if isinstance(blocks, BlockStack):
            return blocks
        if isinstance(blocks, str):
            return cls(_child(module, name.strip()) for name in blocks.split(","))
        return cls([blocks] if isinstance(blocks, nn.Module) and not isinstance(blocks, nn.ModuleList) else [*blocks])

    @classmethod
    def whole(cls, module: nn.Module) -> BlockStack:
        """The whole of ``module`` as one block (U-Nets, black boxes).

        Raises:
            AdapterError: its forward has no argument that could be the sample.
        """
        return cls([module], layout=Layout.of(module.forward, type(module).__name__, first=True))

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

    def install(self) -> None:
        """Put the bypass around every block.

        Raises:
            AdapterError: a block has one already. Nothing is changed then.
        """
        if any(map(Forward.on, self.blocks)):
            raise AdapterError("blocks are attached already; detach() the handle that holds them first")
        self._patches = [Forward(block, partial(self._visit, index)) for index, block in enumerate(self.blocks)]
        for patch in self._patches:
            patch.install()

    def uninstall(self) -> None:
        """Leave every block as it was found."""
        patches, self._patches = self._patches, []
        for patch in patches:
            patch.remove()

    def _visit(self, index: int, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = _current.get()
        if call is None or call.stack is not self:
            return original(*args, **kwargs)
        return call.block(index, original, args, kwargs)


def _flat(blocks: Iterable[nn.Module]) -> Iterator[nn.Module]:
    for item in blocks:
        if isinstance(item, nn.ModuleList):
            yield from item
        elif isinstance(item, nn.Module):
            yield item
        else:
            raise ArgumentError(f"blocks holds {item!r}, which is no module; give modules, ModuleLists or attribute names")


def _layout_of(block: nn.Module, layout: Layouts) -> Layout:
    if isinstance(layout, Layout):
        return layout
    if layout is not None and type(block) in layout:
        return layout[type(block)]
    return Layout.of(block.forward, type(block).__name__)


def _child(module: nn.Module, path: str) -> nn.Module:
    try:
        return module.get_submodule(path)
    except AttributeError:
        known = [name for name, child in module.named_children() if isinstance(child, nn.ModuleList)]
        raise ArgumentError(
            f"blocks={path!r} is no submodule of {type(module).__name__}; its ModuleLists are: {', '.join(known) or 'none'}"
        ) from None
