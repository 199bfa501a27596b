"""The models of diffusers that have a plan for context parallelism, tiny, with as many tokens as two ranks can share.

The models and their inputs are those of the zoo, but for what their plan asks of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from attrs import evolve, field, frozen
from zoo import CASES
from zoo._case import Case, Draw, transformer_classes

import torch

Kwargs = dict[str, Any]

WAYS: dict[str, dict[str, Any]] = {
    "ulysses": {"ulysses_degree": 2},
    "ring": {"ring_degree": 2},
    "ulysses anything": {"ulysses_degree": 2, "ulysses_anything": True},
    "ring anything": {"ring_degree": 2, "ring_anything": True},
}


@frozen
class Split:
    """One class."""

    inputs: Callable[[Kwargs], Kwargs] = dict
    """Of the arguments that the zoo has, those that its plan can split."""
    plan: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict
    """Of the class's own plan, the one that a tiny model needs."""
    config: Mapping[str, Any] = field(factory=dict)
    extras: Mapping[str, Mapping[str, int]] = field(factory=dict)
    """Further arguments, as the zoo names them: which lists of tensors among them are split, and how long they are. The plans
    of diffusers leave them out, and then the model fails: its users have to split them, or to add them to the plan."""


def _even_text(kwargs: Kwargs) -> Kwargs:
    """One token of text more: 5 do not divide by two ranks."""
    longer = {n: v for n, v in kwargs.items() if n in ("encoder_hidden_states", "audio_encoder_hidden_states")}
    return kwargs | {name: torch.cat([v, v[:, -1:]], dim=1) for name, v in longer.items()}


def _flux(kwargs: Kwargs) -> Kwargs:
    return _even_text(kwargs) | {"txt_ids": torch.cat([kwargs["txt_ids"], kwargs["txt_ids"][-1:]])}


def _flux2(kwargs: Kwargs) -> Kwargs:
    """Its plan has position ids with a batch dimension, as its pipelines make them."""
    kwargs = _flux(kwargs)
    return kwargs | {name: kwargs[name][None] for name in ("img_ids", "txt_ids")}


def _unmasked(kwargs: Kwargs) -> Kwargs:
    """Masks are made for all heads, of which Ulysses gives each rank its own; ring attention takes none."""
    return _even_text(kwargs) | {name: None for name in kwargs if name.endswith("attention_mask")}


def _without_history(kwargs: Kwargs) -> Kwargs:
    return {name: None if "history" in name else value for name, value in kwargs.items()}


def _even_rows(kwargs: Kwargs) -> Kwargs:
    """One row of audio less in the packed sequence."""
    kept = torch.arange(len(kwargs["position_ids"])) != kwargs["audio_indices"][-1]
    rows = {name: kwargs[name][kept] for name in ("timestep_indices", "token_tags", "position_ids")}
    audio = {"audio_hidden_states": kwargs["audio_hidden_states"][:, :-1], "audio_indices": kwargs["audio_indices"][:-1]}
    return kwargs | rows | audio | {"video_indices": kwargs["video_indices"] - 1}


def _three_blocks(plan: Mapping[str, Any]) -> Mapping[str, Any]:
    """Its plan counts the 40 blocks of the published model."""
    return {path: what for path, what in plan.items() if path.split(".")[1] in ("*", "0", "1", "2")}


def _all_ropes(plan: Mapping[str, Any]) -> Mapping[str, Any]:
    """Its plan leaves out the positions of the attention between video and audio, and so fails for both."""
    return {**plan, "cross_attn_rope": plan["rope"]}


SPLITS = {
    "ChronoEditTransformer3DModel": Split(),
    "FluxTransformer2DModel": Split(
        _flux, extras={"controlnet": {"controlnet_block_samples": 2, "controlnet_single_block_samples": 2}}
    ),
    "Flux2Transformer2DModel": Split(_flux2),
    "HeliosTransformer3DModel": Split(_without_history, _three_blocks),
    "LTXVideoTransformer3DModel": Split(_unmasked),
    # positions of its "split" kind have four dimensions, of which the plan knows nothing
    "LTX2VideoTransformer3DModel": Split(_unmasked, _all_ropes, {"rope_type": "interleaved"}),
    "MiniMaxH3Transformer3DModel": Split(_even_rows),
    "QwenImageTransformer2DModel": Split(_even_text, extras={"controlnet": {"controlnet_block_samples": 3}}),
    "WanTransformer3DModel": Split(),
}


def planned() -> set[str]:
    """Every class of diffusers that has a plan."""
    return {name for name, kind in transformer_classes().items() if kind._cp_plan is not None}


@frozen
class SplitModel:
    """A class of :data:`SPLITS`, to be made and called with or without context parallelism."""

    cls: str
    extra: str = ""
    """Further arguments of its calls."""
    even: bool = True
    """Whether its tokens are as many as two ranks can share; else they are what the zoo has."""

    @property
    def case(self) -> Case:
        case, split = CASES[self.cls], SPLITS[self.cls]
        return evolve(case, config={**case.config, **split.config})

    def call(self, model: torch.nn.Module, draw: Draw) -> list[torch.Tensor]:
        """The tensors that it returns."""
        fitted: Callable[[Kwargs], Kwargs] = SPLITS[self.cls].inputs if self.even else dict
        # its gather at the end takes no output objects
        case = evolve(self.case, inputs=lambda d: fitted(CASES[self.cls].inputs(d)) | {"return_dict": False})
        # Waits for the gather at its end: gloo may write into a result that is let go of before that, whoever has its memory.
        return [tensor.clone() for tensor in case.call(model, draw, *filter(None, [self.extra]))]

    def enable(self, model: torch.nn.Module, way: str) -> None:
        """Split what it is given over both ranks."""
        from diffusers.models._modeling_parallel import ContextParallelInput

        from diffusers import ContextParallelConfig

        plan = dict(SPLITS[self.cls].plan(self.case.kind._cp_plan))
        tokens = ContextParallelInput(split_dim=1, expected_dims=3, split_output=False)
        lists = {name: [tokens] * count for name, count in SPLITS[self.cls].extras.get(self.extra, {}).items()}
        if lists:
            plan[""] = {**plan.get("", {}), **lists}
        model.enable_parallelism(config=ContextParallelConfig(**WAYS[way]), cp_plan=plan)


@contextmanager
def splitting():
    """Where a case enables context parallelism and makes its calls."""
    import standins
    from diffusers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()  # that this is experimental is said at each call
    try:
        with ExitStack() as stack:
            stack.enter_context(standins.two_devices())
            stack.enter_context(standins.native_ring())
            stack.enter_context(standins.uneven_gather())
            yield
    finally:
        logging.set_verbosity(before)
