"""Where the block stacks of ComfyUI's diffusion models are.

Most are found; the table holds what their code does not tell by names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from attrs import frozen

from magpolicy import AdapterError
from magpolicy_torch.blocks._layout import Arguments, Layout
from magpolicy_torch.blocks._patch import Patch
from magpolicy_torch.blocks._stack import BlockStack
from torch import Tensor, nn


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


class Bypass:
    """What is skipped of one diffusion model. Made for a run, and put on it for the duration of single calls.

    Args:
        module: the diffusion model as it stands now; compiled blocks are taken as they are.
        channels: latent channels: of a model that is skipped as a whole, those of its output.

    Raises:
        AdapterError: its blocks cannot be told.
    """

    def __init__(self, module: nn.Module, channels: int) -> None:
        self.module = module
        found = stack_of(module)
        self.stack = found or BlockStack([_Core(channels)], layout=Layout("sample"))
        self.channel_dim = -1 if found is not None else 1
        if found is None:
            self.stack.scope = "model"
        self._parents = _parents(module, self.stack)

    @property
    def current(self) -> bool:
        """Whether the model still holds the blocks it held; compiling and other nodes put others in their place."""
        return all(parent._modules.get(name) is block for parent, name, block in self._parents)

    @contextmanager
    def bound(self) -> Iterator[None]:
        """On the model inside the with block only."""
        with ExitStack() as undo:
            core = self.stack.blocks[0]
            if isinstance(core, _Core):
                patch = Patch(self.module, core.around)
                patch.install()
                undo.callback(patch.remove)
            undo.enter_context(self.stack.bound())
            yield

    @property
    def busy(self) -> bool:
        """Whether something of ours is on the model already: it is called from inside its own call."""
        return any(map(Patch.on, (self.module, *self.stack.blocks, *self.stack.beside)))


class _Core(nn.Module):
    """A whole model as one block, from nothing to its output."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, sample: Tensor, call: Callable[[], Any]) -> Any:
        return call()

    def around(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """In the place of the model's forward."""
        sample = args[0] if args else kwargs.get("x")
        if not isinstance(sample, Tensor):
            return original(*args, **kwargs)
        # Noise or velocity stay as they are along a straight path, what the model was given does not. So what is kept of a
        # whole model is what it returns: its difference from nothing, of the shape of the latent. (Models for inpainting and
        # video are given more channels than they return.)
        return self(sample.new_zeros(sample[:, : self.channels].shape), partial(original, *args, **kwargs))


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


def _parents(module: nn.Module, stack: BlockStack) -> list[tuple[nn.Module, str, nn.Module]]:
    """Per block, where in ``module`` it is held."""
    held = {id(m): (parent, name, m) for parent in module.modules() for name, m in parent.named_children()}
    return [held[id(block)] for block in stack.blocks if id(block) in held]


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
