"""Where the block stacks of ComfyUI's diffusion models are.

Most are found; the table holds what their code does not tell by names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from attrs import frozen

from magpolicy import AdapterError
from magpolicy_torch.adapter import BlockStack, Layout
from magpolicy_torch.blocks._layout import Arguments
from torch import nn


@frozen
class StackSpec:
    """What has to be told of one class."""

    blocks: str | None = None
    """Its lists in order of execution, where they are not found."""
    layout: Layout | None = None
    """Its blocks' arguments and results, where names and the first computed call do not tell."""
    layouts: tuple[Layout, ...] = ()
    """The same, one for each of its lists."""
    beside: Callable[[Any], Iterable[nn.Module]] | None = None
    """Modules that work for the stack alone: on a skip they are left out too."""
    whole: bool = False
    """It has no stack that can be separated: all of it is skipped (U-Nets)."""


# By module below comfy.ldm and class; subclasses inherit.
TABLE = {
    "modules.diffusionmodules.openaimodel.UNetModel": StackSpec(whole=True),
    "cascade.stage_c.StageC": StackSpec(whole=True),
    "cascade.stage_b.StageB": StackSpec(whole=True),
    "modules.diffusionmodules.mmdit.MMDiT": StackSpec("joint_blocks", Layout(1, text=0, result=1, text_result=0)),
    "aura.mmdit.MMDiT": StackSpec("double_layers,single_layers", layouts=(Layout("x", "c"), Layout("cx"))),
    "hidream.model.HiDreamImageTransformer2DModel": StackSpec(layout=Layout("image_tokens", "text_tokens")),
    "genmo.joint_model.asymm_models_joint.AsymmDiTJoint": StackSpec(layout=Layout("x", "y", result=0, text_result=1)),
    # Samples are the last but one dimension: (time, height, width, batch, channels).
    "cosmos.model.GeneralDIT": StackSpec("blocks", Layout("x", batch=3)),
    "cosmos.predict2.MiniTrainDIT": StackSpec(layout=Layout("x_B_T_H_W_D")),
    # Control branches and adapters: what they give is added between the blocks. What is added after the last block is outside
    # the stack, and needed.
    "wan.model.VaceWanModel": StackSpec(
        beside=lambda m: () if len(m.blocks) - 1 in m.vace_layers_mapping else m.vace_blocks,
    ),
    "wan.model_animate.AnimateWanModel": StackSpec(
        beside=lambda m: () if (len(m.blocks) - 1) % 5 == 0 else m.face_adapter.fuser_blocks,
    ),
}


def told_of(module: nn.Module) -> StackSpec | None:
    """The row of a model's class, if it needs one."""
    keys = (f"{kind.__module__.removeprefix('comfy.ldm.')}.{kind.__name__}" for kind in type(module).__mro__)
    return next((TABLE[key] for key in keys if key in TABLE), None)


def block_names(module: nn.Module) -> list[str]:
    """Paths of the blocks of ``module``, in order; empty for one that is skipped as a whole.

    Raises:
        AdapterError: its blocks cannot be told.
    """
    stack = stack_of(module)
    paths = {id(m): path for path, m in module.named_modules()}
    return [] if stack is None else [paths[id(block)] for block in stack.blocks]


def stack_of(module: nn.Module) -> BlockStack | None:
    """The stack of ``module``; ``None`` if all of it is skipped: U-Nets, and classes of ComfyUI that nothing is known of.

    Raises:
        AdapterError: it is no class of ComfyUI, and its blocks cannot be told.
    """
    module = plain(module)
    told = told_of(module) or StackSpec()
    try:
        return None if told.whole else _as_told(module, told)
    except AdapterError:
        if not type(module).__module__.startswith("comfy."):
            raise
        return None


def _as_told(module: nn.Module, told: StackSpec) -> BlockStack:
    found = map(module.get_submodule, told.blocks.split(",")) if told.blocks else BlockStack.lists(module)
    lists = [list(_items(m)) for m in found]
    given = told.layouts or (told.layout,) * len(lists)
    layouts = [lay or _layout(block) for lay, blocks in zip(given, lists, strict=True) for block in blocks]
    beside = () if told.beside is None else told.beside(module)
    stack = BlockStack([block for blocks in lists for block in blocks], layout=layouts, beside=beside)
    # A compiled block hides the names of its arguments.
    stack.arguments = tuple(Arguments(lay, plain(b).forward) for lay, b in zip(layouts, stack.blocks, strict=True))
    stack.kinds = tuple(type(plain(block)) for block in stack.blocks)
    return stack


def _items(blocks: nn.Module) -> Iterable[nn.Module]:
    return blocks.values() if isinstance(blocks, nn.ModuleDict) else blocks.children()


def _layout(block: nn.Module) -> Layout:
    original = plain(block)
    return Layout.of(original.forward, type(original).__name__)


def plain(module: nn.Module) -> nn.Module:
    """``module``, or what it was compiled from."""
    original = getattr(module, "_orig_mod", module)
    assert isinstance(original, nn.Module)
    return original
