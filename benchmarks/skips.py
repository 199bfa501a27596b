"""What a skip still computes, and how much of that is the same at every step of a run: ``python benchmarks/skips.py``.

Published sizes of diffusers' models, on the meta device: nothing is computed and no memory is needed, operations are counted.
One skipped evaluation of one stream, batch 1, bfloat16, as magpolicy makes it: without the blocks. For each class and part:

- FLOPs of products (matrices, convolutions, attention), as ``torch.utils.flop_counter`` counts them, and bytes that any
  operation reads and writes;
- both as time on an accelerator that does ``--intensity`` FLOPs while it moves a byte, over the least time of the whole
  evaluation, the stack's products alone. So a share is what it is *at most*: the stack moves bytes too, and no product runs at
  the peak;
- what of it is *constant*: operations that neither the latents nor the timestep reach. Only those could be kept over a run.
"""

from __future__ import annotations

import argparse
import contextlib
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

from attrs import Factory, define, frozen
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

import diffusers
import magpolicy
import torch
from magpolicy_diffusers._arguments import Arguments
from magpolicy_diffusers._block_stacks import stack_of
from magpolicy_torch.blocks import _observed
from magpolicy_torch.blocks._stack import BlockStack
from magpolicy_torch.evaluation import _model
from torch import Tensor, nn

# Not counted: they move nothing.
VIEWS = {
    "view", "_unsafe_view", "reshape", "t", "transpose", "permute", "detach", "alias", "slice", "select", "unsqueeze",
    "squeeze", "expand", "split", "split_with_sizes", "chunk", "unbind", "as_strided", "unflatten", "view_as_complex",
    "view_as_real", "empty", "lift_fresh", "diagonal", "movedim", "narrow",
}  # fmt: skip
CHANGES = {"hidden_states", "audio_hidden_states", "timestep", "timesteps", "t", "x", "audio_timestep", "sigma", "audio_sigma"}
"""Arguments that differ from step to step."""

Given = dict[str, Any]
REFINED = "noise_refiner,layers"


def given(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def long(*shape: int) -> Tensor:
    return given(*shape, dtype=torch.long)


@frozen
class Published:
    """A model as it was published, and one evaluation of it."""

    cls: str
    what: str
    """Resolution of the example."""
    config: dict[str, Any]
    """Other than the class's defaults, which are often those of a published model."""
    inputs: Callable[[], Given]
    source: str = "defaults of the class"
    blocks: str | None = None
    """As in :func:`magpolicy.attach`."""
    text_first: bool = True
    """Where text and picture are one sequence."""


def _flux_ids(tokens: int, text: int, axes: int = 3) -> Given:
    return dict(img_ids=given(tokens, axes), txt_ids=given(text, axes))


def _video(channels: int, frames: int, height: int, width: int, text: tuple[int, int], **more: Any) -> Given:
    return dict(
        hidden_states=given(1, channels, frames, height, width), encoder_hidden_states=given(1, *text), timestep=long(1), **more
    )


def _image(channels: int, size: int, text: tuple[int, int], **more: Any) -> Given:
    return dict(hidden_states=given(1, channels, size, size), encoder_hidden_states=given(1, *text), timestep=given(1), **more)


def _flux(size: int) -> Given:
    tokens = (size // 16) ** 2
    return dict(
        hidden_states=given(1, tokens, 64), encoder_hidden_states=given(1, 512, 4096), pooled_projections=given(1, 768),
        timestep=given(1), guidance=given(1), **_flux_ids(tokens, 512),
    )  # fmt: skip


def _lumina() -> Given:
    # Its mask is read on the way.
    return _image(16, 128, (256, 2304), encoder_attention_mask=torch.ones(1, 256, dtype=torch.bool, device="cpu"))


def _z_image() -> Given:
    return dict(x=[given(16, 1, 128, 128)], t=given(1), cap_feats=[given(256, 2560)])


SCRIPTS = "diffusers' scripts/convert_{}_to_diffusers.py"
WAN = dict(num_attention_heads=12, ffn_dim=8960, num_layers=30)
MODELS = {
    "FLUX.1-dev": Published("FluxTransformer2DModel", "1024x1024", dict(guidance_embeds=True), lambda: _flux(1024)),
    "FLUX.1-dev, small picture": Published("FluxTransformer2DModel", "512x512", dict(guidance_embeds=True), lambda: _flux(512)),
    "FLUX.2-dev": Published(
        "Flux2Transformer2DModel", "1024x1024", {},
        lambda: dict(
            hidden_states=given(1, 4096, 128), encoder_hidden_states=given(1, 512, 15360), timestep=given(1), guidance=given(1),
            **_flux_ids(4096, 512, 4),
        ),
    ),
    "Chroma": Published(
        "ChromaTransformer2DModel", "1024x1024", {},
        lambda: dict(
            hidden_states=given(1, 4096, 64), encoder_hidden_states=given(1, 512, 4096), timestep=given(1),
            **_flux_ids(4096, 512),
        ),
    ),
    "Qwen-Image": Published(
        "QwenImageTransformer2DModel", "1024x1024", {},
        lambda: dict(
            hidden_states=given(1, 4096, 64), encoder_hidden_states=given(1, 256, 3584), timestep=given(1),
            img_shapes=[[(1, 64, 64)]],
        ),
    ),
    "SD 3.5 large": Published(
        "SD3Transformer2DModel", "1024x1024",
        dict(num_layers=38, num_attention_heads=38, caption_projection_dim=2432, pos_embed_max_size=192, qk_norm="rms_norm"),
        lambda: _image(16, 128, (333, 4096), pooled_projections=given(1, 2048)),
        SCRIPTS.format("sd3") + "; 38 layers: the model's card",
    ),
    "CogView4": Published(
        "CogView4Transformer2DModel", "1024x1024", dict(num_layers=28, attention_head_dim=128, num_attention_heads=32),
        lambda: _image(
            16, 128, (224, 4096), original_size=given(1, 2), target_size=given(1, 2), crop_coords=given(1, 2)
        ),
        SCRIPTS.format("cogview4"),
    ),
    "PixArt-Sigma": Published(
        "PixArtTransformer2DModel", "1024x1024",
        dict(caption_channels=4096, interpolation_scale=2, use_additional_conditions=False),
        lambda: _image(4, 128, (300, 4096), added_cond_kwargs={"resolution": given(1, 2), "aspect_ratio": given(1, 1)}),
        SCRIPTS.format("pixart_sigma"),
    ),
    "Sana 1.6B": Published(
        "SanaTransformer2DModel", "1024x1024", {}, lambda: _image(32, 32, (300, 2304)), SCRIPTS.format("sana")
    ),
    "AuraFlow": Published(
        "AuraFlowTransformer2DModel", "1024x1024", {}, lambda: _image(4, 128, (256, 2048)), SCRIPTS.format("aura_flow")
    ),
    "Lumina-Image 2.0": Published(
        "Lumina2Transformer2DModel", "1024x1024", dict(cap_feat_dim=2304),
        _lumina,
        "defaults of the class; text of Gemma 2 2B",
    ),
    "Z-Image": Published(
        "ZImageTransformer2DModel", "1024x1024", {}, _z_image, text_first=False,
    ),
    "Lumina-Image 2.0, refiner in the stack": Published(
        "Lumina2Transformer2DModel", "1024x1024", dict(cap_feat_dim=2304), _lumina,
        "defaults of the class; text of Gemma 2 2B", blocks=REFINED,
    ),
    "Z-Image, refiner in the stack": Published(
        "ZImageTransformer2DModel", "1024x1024", {}, _z_image, blocks=REFINED, text_first=False,
    ),
    "Wan2.1-T2V-1.3B": Published(
        "WanTransformer3DModel", "832x480x81", WAN, lambda: _video(16, 21, 60, 104, (512, 4096)), SCRIPTS.format("wan")
    ),
    "Wan2.1-T2V-14B": Published(
        "WanTransformer3DModel", "832x480x81", {}, lambda: _video(16, 21, 60, 104, (512, 4096)), SCRIPTS.format("wan")
    ),
    "Wan2.1-T2V-14B, one frame": Published(
        "WanTransformer3DModel", "832x480x1", {}, lambda: _video(16, 1, 60, 104, (512, 4096)), SCRIPTS.format("wan")
    ),
    "HunyuanVideo": Published(
        "HunyuanVideoTransformer3DModel", "1280x720x129", {},
        lambda: _video(
            16, 33, 90, 160, (256, 4096), encoder_attention_mask=given(1, 256), pooled_projections=given(1, 768),
            guidance=given(1),
        ),
        SCRIPTS.format("hunyuan_video"),
    ),
    "LTX-Video 2B": Published(
        "LTXVideoTransformer3DModel", "704x480x161", {},
        lambda: dict(
            hidden_states=given(1, 21 * 15 * 22, 128), encoder_hidden_states=given(1, 128, 4096), timestep=given(1),
            encoder_attention_mask=given(1, 128), num_frames=21, height=15, width=22,
        ),
        SCRIPTS.format("ltx"),
    ),
    "LTX-Video 13B": Published(
        "LTXVideoTransformer3DModel", "704x480x161", dict(attention_head_dim=128, cross_attention_dim=4096, num_layers=48),
        lambda: dict(
            hidden_states=given(1, 21 * 15 * 22, 128), encoder_hidden_states=given(1, 128, 4096), timestep=given(1),
            encoder_attention_mask=given(1, 128), num_frames=21, height=15, width=22,
        ),
        SCRIPTS.format("ltx"),
    ),
    "LTX-2": Published(
        "LTX2VideoTransformer3DModel", "768x512x121 and sound", dict(rope_type="split", perturbed_attn=False),
        lambda: dict(
            hidden_states=given(1, 16 * 16 * 24, 128), audio_hidden_states=given(1, 126, 128),
            encoder_hidden_states=given(1, 1024, 3840), audio_encoder_hidden_states=given(1, 1024, 3840), timestep=given(1),
            num_frames=16, height=16, width=24, audio_num_frames=126, fps=24.0,
        ),
        SCRIPTS.format("ltx2"),
    ),
    "CogVideoX-5b": Published(
        "CogVideoXTransformer3DModel", "720x480x49",
        dict(num_layers=42, num_attention_heads=48, use_rotary_positional_embeddings=True),
        lambda: dict(
            hidden_states=given(1, 13, 16, 60, 90), encoder_hidden_states=given(1, 226, 4096), timestep=long(1),
            image_rotary_emb=(given(13 * 30 * 45, 64), given(13 * 30 * 45, 64)),
        ),
        SCRIPTS.format("cogvideox") + "; 42 layers: the model's card",
    ),
    "Sana-Video 2B": Published(
        "SanaVideoTransformer3DModel", "832x480x81", dict(mlp_ratio=3.0), lambda: _video(16, 21, 60, 104, (300, 2304)),
        SCRIPTS.format("sana_video"),
    ),
}  # fmt: skip


def attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
    """In one operation, as on an accelerator: the meta device would write the products of all pairs to memory."""
    key, value = (t.expand(*query.shape[:-2], *t.shape[-2:]) if t.shape[1] == 1 else t for t in (key, value))
    if key.shape[1] != query.shape[1]:
        key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], dim=1) for t in (key, value))
    found: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]
    return found


@define
class Work:
    """Operations, the FLOPs of their products, and the bytes they read and write."""

    operations: int = 0
    flops: int = 0
    moved: int = 0

    def add(self, flops: int, moved: int) -> None:
        self.operations += 1
        self.flops += flops
        self.moved += moved


@define
class Part:
    """A part of a model: all of its work, and what is the same at every step."""

    all: Work = Factory(Work)
    constant: Work = Factory(Work)

    @classmethod
    def of(cls, parts: Mapping[str, Part]) -> Part:
        """All of them together."""
        total = cls()
        for part in parts.values():
            for sum_, of in ((total.all, part.all), (total.constant, part.constant)):
                sum_.operations += of.operations
                sum_.flops += of.flops
                sum_.moved += of.moved
        return total


class Counting(TorchDispatchMode):
    """Counts by part. What an operation makes of changing tensors is changing as well, and so is a tensor that it writes to."""

    def __init__(self, changing: Given) -> None:
        super().__init__()
        self.parts: dict[str, Part] = defaultdict(Part)
        self.inside = ["the model's own code"]
        self._kept = [leaf.untyped_storage() for leaf in tree_leaves(changing) if isinstance(leaf, Tensor)]
        self._changing = {storage._cdata for storage in self._kept}  # type: ignore[attr-defined]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        changing = any(tensor.untyped_storage()._cdata in self._changing for tensor in read)  # type: ignore[attr-defined]
        if changing:
            written = [leaf for leaf in args[:1] if isinstance(leaf, Tensor) and func._schema.is_mutable]
            for tensor in (*made, *written):
                self._kept.append(tensor.untyped_storage())
                self._changing.add(self._kept[-1]._cdata)  # type: ignore[attr-defined]
        if func._schema.name.removeprefix("aten::") not in VIEWS:
            counts = flop_registry.get(func._overloadpacket)
            flops = counts(*args, **kwargs, out_val=result) if counts is not None else 0
            moved = sum(tensor.numel() * tensor.element_size() for tensor in (*read, *made))
            part = self.parts[self.inside[-1]]
            part.all.add(flops, moved)
            if not changing:
                part.constant.add(flops, moved)
        return result

    @contextlib.contextmanager
    def watching(self, model: nn.Module, told: str | None) -> Iterator[None]:
        """Knows in which part an operation is: the stack of blocks, or a child outside of it."""
        blocks = set((stack_of(model) if told is None else BlockStack.of(model, told)).blocks)
        named = dict.fromkeys(blocks, "stack")
        for name, child in model.named_children():
            if child not in blocks and not blocks & set(child.modules()):
                named |= dict.fromkeys(child if type(child) is nn.ModuleList else [child], name)
        handles = []
        for module, name in named.items():
            handles.append(module.register_forward_pre_hook(lambda *_, name=name: self.inside.append(name)))
            handles.append(module.register_forward_hook(lambda *_: self.inside.pop() and None, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def same(one: Any, other: Any) -> bool:
    """Meta tensors have no values to compare; adding them is enough to have blanks complain."""
    return all((a + b).shape == b.shape for a, b in zip(tree_leaves(one), tree_leaves(other), strict=True))


@frozen
class Counted:
    """What was counted of one model."""

    stack: Work
    rest: Work
    """Of an evaluation of the bare model."""
    more: int
    """Bytes that a computed evaluation moves besides, where the residual is kept."""
    skip: dict[str, Part]
    """A skipped evaluation, by part."""


def count(published: Published) -> Counted:
    """One evaluation of each kind."""
    with torch.device("meta"):
        model = getattr(diffusers, published.cls)(**published.config).to(torch.bfloat16).eval().requires_grad_(False)
        inputs = published.inputs()
        changing = {name: value for name, value in inputs.items() if name in CHANGES}
        bare, computed, skipped = (Counting(changing) for _ in range(3))
        schedule = magpolicy.Schedule.from_mask([1, 0, 1, 0])
        with contextlib.ExitStack() as stack:
            for patch in (
                mock.patch.object(nn.functional, "scaled_dot_product_attention", attention),
                mock.patch.object(torch, "autocast", return_value=contextlib.nullcontext()),  # knows nothing of "meta"
                mock.patch.object(torch, "equal", same),
                mock.patch.object(_model, "same", same),
                mock.patch.object(_observed, "_trails", return_value=published.text_first),  # the picture's tokens, the text
                mock.patch.object(_observed, "_leads", return_value=not published.text_first),
                mock.patch.object(Arguments, "timestep", return_value=None),  # there is none to read
            ):
                stack.enter_context(patch)
            with torch.no_grad(), bare.watching(model, published.blocks), bare:
                model(**inputs, return_dict=False)
            handle = stack.enter_context(magpolicy.attach(model, schedule=schedule, blocks=published.blocks))
            with torch.no_grad(), handle.run(), handle.stream("cond"):
                for _ in range(2):  # the first of each kind is watched
                    model(**inputs, return_dict=False)
                with computed:
                    model(**inputs, return_dict=False)
                with skipped.watching(model, published.blocks), skipped:
                    model(**inputs, return_dict=False)
    whole, blocks = Part.of(bare.parts).all, bare.parts.pop("stack").all
    more = Part.of(computed.parts).all.moved - whole.moved
    return Counted(blocks, Part.of(bare.parts).all, more, dict(skipped.parts))


def show(name: str, published: Published, intensity: float, *, parts: bool) -> None:
    counted = count(published)
    stack, rest, left = counted.stack, counted.rest, Part.of(counted.skip)

    def share(work: Work) -> float:
        """Of the evaluation, in percent: products and bytes one after the other, over the stack's products."""
        return 100 * (work.flops + work.moved * intensity) / stack.flops

    whole, skip = 1 + share(rest) / 100, share(left.all) / 100
    bound = 3 * whole / (whole + 2 * skip)
    print(
        f"| {name}, {published.what} | {stack.flops / 1e12:.1f} | {rest.operations} | {share(rest):.2f} "
        f"| {left.all.operations} | {100 * left.all.flops / stack.flops:.3f} | {share(left.all):.2f} | {bound:.2f} "
        f"| {left.constant.operations} | {share(left.constant):.3f} | {share(Work(moved=counted.more)):.3f} |"
    )
    if parts:
        for label, part in sorted(counted.skip.items(), key=lambda item: -share(item[1].all)):
            if share(part.all) >= 0.0005:
                print(
                    f"    {label:32} {part.all.flops / 1e9:10.2f} GFLOP {part.all.moved / 2**20:9.1f} MiB "
                    f"{share(part.all):7.3f} %   constant {share(part.constant):7.3f} %"
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, nargs="+", default=list(MODELS))
    parser.add_argument("--intensity", type=float, default=153.0, help="FLOPs per byte; A100: 312e12 / 2.04e12")
    parser.add_argument("--parts", action="store_true", help="also each part, with its name")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    diffusers.utils.logging.set_verbosity_error()
    print(f"torch {torch.__version__}, diffusers {diffusers.__version__}, {chosen.intensity:.0f} FLOPs per byte\n")
    head = [
        "model",
        "stack, TFLOP",
        "beside it: operations",
        "% of time, at most",
        "a skip: operations",
        "% of FLOPs",
        "% of time, at most",
        "3x becomes",
        "constant: operations",
        "% of time, at most",
        "a computed step more, % of time, at most",
    ]
    print("| " + " | ".join(head) + " |")
    print("|---" * len(head) + "|")
    for name in chosen.model:
        try:
            show(name, MODELS[name], chosen.intensity, parts=chosen.parts)
        except Exception as error:
            print(f"| {name} | {type(error).__name__}: {str(error).splitlines()[0][:90]} |")


if __name__ == "__main__":
    main()
