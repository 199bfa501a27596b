"""The bare model watched by torch's own hooks: where the truth comes from that an adapter is compared with."""

from __future__ import annotations

import inspect
from contextlib import contextmanager
from typing import Any

import torch

from ._case import Case


def late(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Modules of which one is called late in every call: a skip does not call the last block, but what comes after it."""
    names, children = zip(*model.named_children(), strict=True)
    lists = [index for index, child in enumerate(children) if isinstance(child, torch.nn.ModuleList) and len(child)]
    after = [
        child for index, child in enumerate(children) if index not in lists and (index > lists[0] or "out" in names[index])
    ]
    return [children[index][-1] for index in lists] + after


class Watch:
    """What one call of the bare model did at its stack; ``replace`` (if given) is put in place of the stack's output."""

    def __init__(self, case: Case, model: torch.nn.Module, replace: list[torch.Tensor] | None = None) -> None:
        self.case, self.blocks, self.replace = case, case.stack(model), replace
        self.order: list[int] = []
        self.entered: list[torch.Tensor] = []
        """The streams at the first block: image tokens, then those of ``case.also``."""
        self.left: list[torch.Tensor] = []
        """The same streams after the last block."""

    @property
    def residuals(self) -> list[torch.Tensor]:
        return [after - before for after, before in zip(self.left, self.entered, strict=True)]

    @contextmanager
    def watching(self):
        handles = [b.register_forward_pre_hook(self._count(i), with_kwargs=True) for i, b in enumerate(self.blocks)]
        handles.append(self.blocks[0].register_forward_pre_hook(self._enter, with_kwargs=True))
        handles.append(self.blocks[-1].register_forward_hook(self._leave))
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def _count(self, index):
        return lambda *_: self.order.append(index)

    def _enter(self, block, args, kwargs):
        if self.entered:
            return
        names = list(inspect.signature(type(block).forward).parameters)[1:]
        given = dict(zip(names, args, strict=False)) | kwargs
        self.entered = [given[name].clone() for name in (self.case.hidden, *self.case.also)]

    def _leave(self, block, args, result):
        if not self.entered:
            return None  # the first block was left out
        places = [self.case.result, *self.case.also.values()]
        whole = [result if place is None else result[place] for place in places]
        texts = [self.case.text, *("" for _ in self.case.also)]
        bounds = [_bounds(*given) for given in zip(texts, whole, self.entered, strict=True)]
        if self.case.interleaved:
            (batch_frames, patches, width), frames = self.entered[0].shape, whole[0].shape[1]
            regrouped = whole[0].view(batch_frames // frames, patches, frames, width).permute(0, 2, 1, 3)
            whole[0] = regrouped.reshape(self.entered[0].shape)
        self.left = [t[:, a:b].clone() if (a, b) != (0, None) else t.clone() for t, (a, b) in zip(whole, bounds, strict=True)]
        if self.replace is None:
            return None
        built = list(result) if isinstance(result, (tuple, list)) else [result]
        for place, tensor, (a, b), new in zip(places, whole, bounds, self.replace, strict=True):
            new = new.clone()  # what comes after the stack may write into it
            if self.case.interleaved:
                batch_frames, patches, width = new.shape
                frames = result.shape[1]
                regrouped = new.view(batch_frames // frames, frames, patches, width).permute(0, 2, 1, 3)
                new = regrouped.reshape(result.shape)
            if (a, b) != (0, None):
                new = torch.cat([tensor[:, :a], new, tensor[:, tensor.shape[1] if b is None else b :]], dim=1)
            built[place or 0] = new
        return type(result)(built) if isinstance(result, (tuple, list)) else built[0]


def _bounds(text: str, whole: torch.Tensor, image: torch.Tensor) -> tuple[int, Any]:
    more = whole.shape[1] - image.shape[1] if text else 0
    return (more, None) if text == "prefix" else (0, whole.shape[1] - more if more else None)


def watch(
    case: Case, model: torch.nn.Module, draw: Any, *extras: str, replace: list[torch.Tensor] | None = None
) -> tuple[list[torch.Tensor], Watch]:
    """The outputs of one call of the bare model, and what its stack did."""
    seen = Watch(case, model, replace)
    with seen.watching():
        outputs = case.call(model, draw, *extras)
    return outputs, seen


def skipped(case: Case, model: torch.nn.Module, draw: Any, *extras: str, residuals: list[torch.Tensor]) -> list[torch.Tensor]:
    """What a skip must return: the bare model's outputs with the stack's output replaced by its input plus ``residuals``."""
    _, seen = watch(case, model, draw, *extras)
    new = [before + residual for before, residual in zip(seen.entered, residuals, strict=True)]
    return watch(case, model, draw, *extras, replace=new)[0]
