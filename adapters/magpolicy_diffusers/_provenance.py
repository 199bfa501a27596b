"""Where a calibration comes from, as far as a pipeline or model tells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from magpolicy_torch.adapter import versions

_SHIFTS = ("shift", "flow_shift", "use_dynamic_shifting")


def provenance(pipe: Any, model: Any) -> dict[str, Any]:
    """Class, repo id, scheduler and guidance, in plain JSON values; what is not known is left out."""
    scheduler = getattr(pipe, "scheduler", None)
    found = {
        "model": type(model).__name__,
        "pipeline": None if pipe is None else type(pipe).__name__,
        "repo": next(map(_shown, repos(pipe, model)), None),
        "scheduler": None if scheduler is None else type(scheduler).__name__,
        "shift": shift(scheduler),
        "guidance": guidance(pipe),
        "versions": versions("diffusers"),
    }
    return {key: value for key, value in found.items() if value is not None}


def repos(*objects: Any) -> Iterator[str]:
    """The repo ids or paths that these were loaded from."""
    for thing in objects:
        name = getattr(thing, "name_or_path", None) or config_of(thing).get("_name_or_path")
        if name:
            yield str(name)


def _shown(repo: str) -> str:
    """A repo id as it is, of a local path its last part: the rest is nobody else's business."""
    path = Path(repo)
    return path.name if path.is_absolute() or path.exists() or repo.count("/") != 1 else repo


def config_of(thing: Any) -> Mapping[str, Any]:
    """The config of a pipeline, model or scheduler."""
    return dict(getattr(thing, "config", None) or {})


def shift(scheduler: Any) -> float | str | None:
    """How a scheduler of flow matching shifts its levels: a factor, or ``"dynamic"`` with the resolution."""
    config = config_of(scheduler)
    if config.get("use_dynamic_shifting"):
        return "dynamic"
    value = next((config[key] for key in _SHIFTS if isinstance(config.get(key), (int, float))), None)
    return None if value is None else float(value)


def guidance(pipe: Any) -> float | None:
    """The scale of classifier-free guidance of the pipeline's call under way, or of its last one.

    ``None`` where the pipeline does not say: where a distilled model is told a scale, that is another thing.
    """
    if not getattr(pipe, "do_classifier_free_guidance", False):
        return None
    value = getattr(pipe, "_guidance_scale", None)
    return float(value) if isinstance(value, (int, float)) else None
