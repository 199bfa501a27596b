"""The entry point of the engine: hooks on its denoising stage, and on the methods by which its models ask."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from contextvars import ContextVar
from typing import Any

import magpolicy
import torch
from magpolicy import MagPolicyError
from magpolicy_sglang import _engine, _seam, _settings
from magpolicy_sglang._handle import ATTACHED, RUN, StageHandle, logger
from torch import Tensor, nn

_server: dict[str, Any] | None = None
_loops: ContextVar[int] = ContextVar("magpolicy_sglang_loops", default=0)
"""Loops of the engine's common kind that were seen here."""
_said: set[str] = set()


def activate() -> None:
    """Register the hooks: what the engine calls at the start of each of its processes.

    Raises:
        AdapterError: this version of the engine is not known. Nothing was registered.
        SystemExit: the same, or settings that cannot be used, where the server was started with settings for magpolicy: the
            engine goes on without a plugin that raises, and a server that was to skip would not.
    """
    global _server
    try:
        _server = _settings.of_server()
        _engine.check_version()
    except MagPolicyError as error:
        if _settings.wanted():
            raise SystemExit(f"magpolicy: {error}") from error
        raise
    from sglang.multimodal_gen.runtime.platforms.plugins import HookType, plugin_hook

    for place, hook in (
        (_engine.STAGE, around_stage),
        (_engine.MADE, around_made),
        (_engine.LOOP, around_loop),
        (_engine.PREDICT, around_predict),
        (_engine.BEGIN, around_begin),
        (_engine.RECORD, around_record),
        (_engine.FORECAST, around_forecast),
    ):
        plugin_hook(place, HookType.AROUND)(hook)


def own_settings(batch: Any) -> dict[str, Any] | bool | None:
    """What a request asks for itself, see :func:`_settings.of_request`."""
    extra = getattr(batch, "diffusers_kwargs", None) or (getattr(batch, "extra", None) or {}).get("diffusers_kwargs")
    return _settings.of_request(extra)


def handle_for(stage: Any, own: dict[str, Any] | bool | None) -> StageHandle | None:
    """What the loop of a request goes by, with its own settings; ``None``: it computes."""
    handle = ATTACHED.get(stage)
    if own is False or (own is None and (handle is None or handle.on_request)):
        return None
    if handle is None:
        handle = magpolicy.attach(stage)
        handle.on_request = True
    return handle


def say(why: str) -> None:
    """Log once why requests compute."""
    if why not in _said:
        _said.add(why)
        logger.warning("magpolicy: every step computes: %s", why)


def around_made(original: Callable[..., None], stage: Any, *args: Any, **kwargs: Any) -> None:
    """In place of making the stage: with settings of the server it is attached to, and what cannot be ends the start."""
    original(stage, *args, **kwargs)
    if _server is not None:
        magpolicy.attach(stage, **_server)


def around_stage(original: Callable[..., Any], stage: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
    """In place of a call of any stage: one that denoises in a loop of its own cannot skip, and that is said."""
    before = _loops.get()
    result = original(stage, batch, *args, **kwargs)
    if _loops.get() == before and _engine.denoises(stage) and not getattr(batch, "is_warmup", False):
        own = own_settings(batch)
        if own or (own is None and (_server is not None or stage in ATTACHED)):
            say(f"{type(stage).__name__} has a loop of its own")
    return result


def around_loop(original: Callable[..., Any], stage: Any, ctx: Any, batch: Any, server_args: Any, **options: Any) -> Any:
    """In place of the loop of a request: the run begins and ends here."""
    _loops.set(_loops.get() + 1)
    own = own_settings(batch)
    handle = None if ctx.is_warmup else handle_for(stage, own)
    if handle is None:
        return original(stage, ctx, batch, server_args, **options)
    why = handle.keeps_out(ctx, batch, server_args)
    if why:
        say(why)
        return original(stage, ctx, batch, server_args, **options)
    with handle.settings(**own) if isinstance(own, dict) else nullcontext(), handle.run(ctx, batch, server_args) as run:
        result = original(stage, ctx, batch, server_args, **options)
    if run.in_vain:
        say(run.in_vain)
    return result


def around_predict(original: Callable[..., Any], stage: Any, current_model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """In place of one call of a model in the loop."""
    here = RUN.get()
    if here is None or here[0].target is not stage:
        return original(stage, current_model, *args, **kwargs)
    from sglang.multimodal_gen.runtime.managers.forward_context import get_forward_context

    latents = args[0] if args else kwargs["latent_model_input"]
    handle, run = here
    step = int(get_forward_context().current_timestep)
    return handle.called(run, current_model, step, lambda: original(stage, current_model, *args, **kwargs), latents.device)


# What a model's forward calls. A model that is compiled as a whole breaks its graph here, outside of its blocks.


@torch.compiler.disable  # type: ignore[untyped-decorator]
def around_begin(original: Callable[..., bool], model: Any) -> bool:
    """In place of the question whether to run the blocks."""
    call = _seam.of(model)
    return original(model) if call is None else call.begin()


@torch.compiler.disable  # type: ignore[untyped-decorator]
def around_record(original: Callable[..., None], model: Any, features: Tensor) -> None:
    """In place of noting what came out of the blocks."""
    call = _seam.of(model)
    if call is None:
        original(model, features)
    else:
        call.record(features)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def around_forecast(original: Callable[..., Tensor], model: Any, template: Tensor) -> Tensor:
    """In place of the engine's own forecast."""
    call = _seam.of(model)
    return original(model, template) if call is None else call.forecast(template)
