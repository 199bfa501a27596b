"""The entry point of the engine: hooks on its denoising stage, and on the methods by which its models ask."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import magpolicy
import torch
from magpolicy import MagPolicyError
from magpolicy_sglang import _engine, _seam, _settings
from magpolicy_sglang._handle import ATTACHED, RUN, StageHandle
from torch import Tensor, nn

_server: dict[str, Any] | None = None
_handles: WeakKeyDictionary[Any, dict[str, StageHandle]] = WeakKeyDictionary()
"""By stage and settings. Requests of the same settings share a handle, and with it its plans."""


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
        (_engine.LOOP, around_loop),
        (_engine.PREDICT, around_predict),
        (_engine.BEGIN, around_begin),
        (_engine.RECORD, around_record),
        (_engine.FORECAST, around_forecast),
    ):
        plugin_hook(place, HookType.AROUND)(hook)


def handle_for(stage: Any, batch: Any) -> StageHandle | None:
    """What the loop of a request goes by: its own settings, the handle attached to the stage, or the server's settings.

    Raises:
        ArgumentError: the settings cannot be used.
    """
    extra = getattr(batch, "diffusers_kwargs", None) or batch.extra.get("diffusers_kwargs")
    own = (extra or {}).get(_settings.KEY)
    if own is None and stage in ATTACHED:
        return ATTACHED[stage]
    asked = _settings.of_request(_server, extra)
    if asked is None:
        return None
    made, key = _handles.setdefault(stage, {}), json.dumps(asked, sort_keys=True)
    if key not in made:
        attached = ATTACHED.get(stage)
        made[key] = magpolicy.attach(stage, **asked)
        if attached is None:
            ATTACHED.pop(stage, None)
        else:
            ATTACHED[stage] = attached
    return made[key]


def around_loop(original: Callable[..., Any], stage: Any, ctx: Any, batch: Any, server_args: Any, **options: Any) -> Any:
    """In place of the loop of a request: the run begins and ends here."""
    handle = None if ctx.is_warmup else handle_for(stage, batch)
    if handle is None:
        return original(stage, ctx, batch, server_args, **options)
    why = handle.keeps_out(ctx, batch, server_args)
    if why:
        handle.say(why)
        return original(stage, ctx, batch, server_args, **options)
    with handle.run(ctx, batch):
        return original(stage, ctx, batch, server_args, **options)


def around_predict(original: Callable[..., Any], stage: Any, current_model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """In place of one call of a model in the loop."""
    here = RUN.get()
    if here is None or here[0].stage is not stage:
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
