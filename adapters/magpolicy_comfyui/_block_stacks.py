"""Where the block stacks of ComfyUI's diffusion models are.

Most are found; the table holds what their code does not tell by names.
"""

from __future__ import annotations

from magpolicy_torch.adapter import BlockStack, Layout, StackSpec, StackTable, unwrap
from torch import nn

# By module below comfy.ldm and class; subclasses inherit.
TABLE = {
    "modules.diffusionmodules.openaimodel.UNetModel": StackSpec(whole=True),
    "cascade.stage_c.StageC": StackSpec(whole=True),
    "cascade.stage_b.StageB": StackSpec(whole=True),
    "modules.diffusionmodules.mmdit.MMDiT": StackSpec("joint_blocks", Layout(1, text=0, result=1, text_result=0)),
    "aura.mmdit.MMDiT": StackSpec("double_layers,single_layers", (Layout("x", "c"), Layout("cx"))),
    "hidream.model.HiDreamImageTransformer2DModel": StackSpec(layout=Layout("image_tokens", "text_tokens")),
    "genmo.joint_model.asymm_models_joint.AsymmDiTJoint": StackSpec(layout=Layout("x", "y", result=0, text_result=1)),
    # Samples are the last but one dimension: (time, height, width, batch, channels).
    "cosmos.model.GeneralDIT": StackSpec("blocks", Layout("x", batch=3)),
    "cosmos.predict2.MiniTrainDIT": StackSpec(layout=Layout("x_B_T_H_W_D")),
    "boogu.model.BooguTransformer2DModel": StackSpec(
        "double_stream_layers,single_stream_layers",
        (Layout("img_hidden_states", "instruct_hidden_states"), Layout("hidden_states")),
    ),
    "ace.ace_step15.AceStepConditionGenerationModel": StackSpec("decoder.layers"),
    # Few blocks of pixels come after the patches'; they are given the sample anew, and run on skips too.
    "pixeldit.model.PixDiT_T2I": StackSpec("patch_blocks", Layout("x", "y")),
    "pixeldit.pid.PidNet": StackSpec(
        "patch_blocks",
        Layout("x", "y"),
        side_branches=lambda m: m.lq_proj.gate_modules[1:],  # the first is before the stack
    ),
    # Control branches and adapters: what they give is added between the blocks. What is added after the last block is outside
    # the stack, and needed.
    "wan.model.VaceWanModel": StackSpec(
        side_branches=lambda m: () if len(m.blocks) - 1 in m.vace_layers_mapping else m.vace_blocks,
    ),
    "wan.model_animate.AnimateWanModel": StackSpec(
        side_branches=lambda m: () if (len(m.blocks) - 1) % 5 == 0 else m.face_adapter.fuser_blocks,
    ),
    # Its blocks are not called: it runs parts of them by other names, and looks into all of them.
    "wan.model_animate2.WanAnimate2Model": StackSpec(whole=True),
    # Its layers return what is kept of the prompt for later calls beside their tokens; those calls are given fewer tokens.
    "hidream_o1.model.HiDreamO1Transformer": StackSpec(whole=True),
    # Beyond eight seconds, it runs its layers several times in a call, for one window after another.
    "minimax_music.dit.MiniMaxMusic3DiT": StackSpec(whole=True),
    # In a call of two conditions, their blocks have them in the other order than the call.
    "hunyuan3dv2_1.hunyuandit.HunYuanDiTPlain": StackSpec(whole=True),
    "seedvr.model.NaDiT": StackSpec(whole=True),
    # Several models in one, of which a call runs one; two of them on sparse tensors.
    "trellis2.model.Trellis2": StackSpec(whole=True),
}
_STACKS = StackTable(TABLE, package="comfy", below="comfy.ldm")


def stack_of(module: nn.Module) -> BlockStack | None:
    """The stack of ``module``; ``None`` if all of it is skipped: U-Nets, and classes of ComfyUI that nothing is known of.

    Raises:
        AdapterError: it is no class of ComfyUI, and its blocks cannot be told.
    """
    return _STACKS.find(module)


def block_names(module: nn.Module) -> list[str]:
    """Paths of the blocks of ``module``, in order; empty for one that is skipped as a whole.

    Raises:
        AdapterError: its blocks cannot be told.
    """
    stack = stack_of(module)
    paths = {id(m): path for path, m in unwrap(module).named_modules()}
    return [] if stack is None else [paths[id(block)] for block in stack.blocks]
