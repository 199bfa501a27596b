"""The twins of a module that are made: one whose blocks are watched, one that computes, and those that skip."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from magpolicy_torch.blocks._stack import BlockStack, current
from magpolicy_torch.evaluation._call_spec import CallSpec
from magpolicy_torch.evaluation._shadow import ModulePath, NoShadowError, ShadowModule, module_paths
from magpolicy_torch.evaluation._stack_parts import Probe, Skipped, StackIO, Tapped
from torch import nn

WAYS = {
    "last": "only the last list holds a block, which is first and last",
    "short": "every list holds one block",
    "full": "every block is called, and returns what it is given",
}
"""How a skip can be made, quickest first."""

Contents = dict[str, dict[str, nn.Module]]


class ShadowBuilder:
    """Makes the twins of ``module``, whose blocks are those of ``stack``."""

    def __init__(self, module: nn.Module, stack: BlockStack) -> None:
        self.module, self.stack = module, stack
        self._homes = module_paths(module, (*stack.blocks, *stack.beside)) if stack.scope == "stack" else None

    @property
    def possible(self) -> bool:
        """Whether the module holds each of the blocks, and once."""
        return self._homes is not None

    def probing(self) -> ShadowModule | None:
        """A twin whose blocks report to the call under way."""
        if self._homes is None or not self._at_home():
            return None
        parts = [Probe(block, partial(self._watch, "block", index)) for index, block in enumerate(self.stack.blocks)]
        parts += [Probe(block, partial(self._watch, "beside", index)) for index, block in enumerate(self.stack.beside)]
        return ShadowModule(self.module, self._contents(dict(zip(self._homes, parts, strict=True))))

    def computing(self, understood: CallSpec, tap: StackIO) -> ShadowModule:
        """A twin that computes, and notes what goes into the stack and what comes out.

        Raises:
            NoShadowError: the model has other blocks by now.
        """
        assert self._homes is not None
        if not self._at_home():
            raise NoShadowError
        last, copied = len(self.stack) - 1, understood.learned.in_place is not False
        parts: dict[ModulePath, nn.Module] = {}
        for index in {0, last}:
            part = Tapped(
                self.stack.blocks[index], tap, understood.reads[index], understood.builds[index],
                first=index == 0, last=index == last, copied=copied,
            )  # fmt: skip
            parts[self._homes[index]] = part
        return ShadowModule(self.module, self._contents(parts))

    def skipping(self, understood: CallSpec, tap: StackIO, way: str) -> ShadowModule | None:
        """A twin that skips in one of the :data:`WAYS`; ``None`` if it cannot."""
        assert self._homes is not None
        count = len(self.stack)
        runs = [list(range(count))] if way == "full" else list(_runs(self._homes[:count]))
        if self.stack.beside or not self._at_home() or (way != "full" and not self._clear(runs, understood)):
            return None
        if way == "last":
            kept = [count - 1]
        elif way == "short":
            kept = sorted({run[0] for run in runs} | {count - 1})
        else:
            kept = runs[0]
        parts: dict[ModulePath, nn.Module] = {}
        for index in kept:
            part = Skipped(
                self.stack.blocks[index], tap, understood.reads[index], understood.builds[index],
                self.stack.layouts[index], understood.learned.side,
            )  # fmt: skip
            part.first, part.last = index == kept[0], index == kept[-1]
            parts[self._homes[index]] = part
        if way == "full":
            return ShadowModule(self.module, self._contents(parts))
        contents: Contents = {}
        for path in (self._homes[run[0]].path for run in runs):
            held = [part for home, part in parts.items() if home.path == path]
            contents[path] = {str(place): part for place, part in enumerate(held)}
        return ShadowModule(self.module, contents)

    def _at_home(self) -> bool:
        """Whether the stack's blocks are still those of the model."""
        blocks = (*self.stack.blocks, *self.stack.beside)
        holders = {home.path: self.module.get_submodule(home.path)._modules for home in self._homes or ()}
        return all(holders[home.path].get(home.name) is block for home, block in zip(self._homes or (), blocks, strict=True))

    def _clear(self, runs: Sequence[Sequence[int]], understood: CallSpec) -> bool:
        """Whether every list of blocks is run from end to end with nothing in between."""
        assert self._homes is not None
        paths = [self._homes[run[0]].path for run in runs]
        holders = [self.module.get_submodule(path) for path in paths]
        whole = all(
            type(holder) is nn.ModuleList and len(holder) == len(run) for holder, run in zip(holders, runs, strict=True)
        )
        between = {index for run in runs for index in run[1:]}
        return whole and len(set(paths)) == len(paths) and not between & understood.touched

    def _contents(self, parts: Mapping[ModulePath, nn.Module]) -> Contents:
        contents: Contents = {}
        for home, part in parts.items():
            if home.path not in contents:
                contents[home.path] = dict(self.module.get_submodule(home.path)._modules) if home.path else {}  # type: ignore[arg-type]
            contents[home.path][home.name] = part
        return contents

    def _watch(self, what: str, index: int, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = current(self.stack)
        if call is None:
            return block(*args, **kwargs)
        return getattr(call, what)(index, block, args, kwargs)


def _runs(homes: Sequence[ModulePath]) -> Iterator[list[int]]:
    """The blocks, by the module that holds them, as long as they follow one another there."""
    run: list[int] = []
    for index, home in enumerate(homes):
        if run and homes[run[-1]].path != home.path:
            yield run
            run = []
        run.append(index)
    yield run
