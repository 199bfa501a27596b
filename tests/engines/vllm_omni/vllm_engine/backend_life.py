"""How a cache backend is chosen, enabled and refreshed: the engine's own mag_cache, and ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from . import engine

SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "mag_cache": {"rule": {"mag_ratios": [1.0] * 12, "num_inference_steps": 12}, "calibrating": {"mag_calibrate": True}},
    "magpolicy": {"rule": {"ratios": [1.0] * 12}, "calibrating": {"calibrate": True}},
}


def backend_life(backend: str, settings: str, blocks: int) -> dict[str, Any]:
    """A backend of that name on FLUX.1 with so many blocks a list. It is not enabled: a refresh does it."""
    given = SETTINGS[backend][settings]
    transformer = engine.worker("flux").model_runner.pipeline.transformer
    with _cut(transformer, blocks), engine.cached("flux", backend, enable=False, **given) as runner:
        chosen = runner.cache_backend
        before = chosen.is_enabled()
        chosen.refresh(runner.pipeline, num_inference_steps=12)
        (latents,) = engine.run(runner, [engine.request("flux")])
        finite = bool(latents.isfinite().all())
        return {"class": type(chosen).__name__, "enabled": [before, chosen.is_enabled()], "finite": finite}


@contextmanager
def _cut(transformer: nn.Module, blocks: int) -> Iterator[None]:
    names = ("transformer_blocks", "single_transformer_blocks")
    whole = {name: getattr(transformer, name) for name in names}
    for name in names:
        setattr(transformer, name, whole[name][:blocks])
    try:
        yield
    finally:
        for name in names:
            setattr(transformer, name, whole[name])
