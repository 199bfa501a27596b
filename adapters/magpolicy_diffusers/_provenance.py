"""Where a calibration comes from, as far as a pipeline or model tells."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from attrs import evolve

from magpolicy.adapter import ModelIdentity, digest, repo_and_part
from magpolicy_diffusers._pipeline import DENOISERS, denoisers_of
from magpolicy_torch.adapter import identity_of, versions
from torch import nn

_OF_A_CALL = frozenset({"num_frame_per_block"})
"""What pipelines write into a model's config at each call (SkyReels-V2)."""
_SHIFTS = ("shift", "flow_shift", "use_dynamic_shifting")


def provenance(pipe: Any, modules: Sequence[nn.Module]) -> dict[str, Any]:
    """Identity, class, repo id, scheduler and guidance, in plain JSON values; what is not known is left out."""
    which = identity(pipe, modules)
    found = {
        "model": which.model,
        "identity": which.to_dict(),
        "pipeline": None if pipe is None else type(pipe).__name__,
        "repo": which.repo or None,
        **conditions(pipe),
        "versions": versions("diffusers"),
    }
    return {key: value for key, value in found.items() if value is not None}


def conditions(pipe: Any) -> dict[str, Any]:
    """Scheduler, shift and guidance of a pipeline's call under way, or of its last one; ``None`` for what is not known."""
    scheduler = getattr(pipe, "scheduler", None)
    kind = None if scheduler is None else type(scheduler).__name__
    return {"scheduler": kind, "shift": shift(scheduler), "guidance": guidance(pipe)}


def identity(pipe: Any, modules: Sequence[nn.Module]) -> ModelIdentity:
    """Which model a pipeline has, or a model is; two experts are one, of both their weights and configs.

    Args:
        pipe: the pipeline; ``None``: a model by itself.
        modules: its denoisers, or the model.
    """
    own = next(repos(pipe), "")
    repo, part = repo_of(own, ()) if own else repo_of(next(repos(*modules), ""))
    configs = ({key: value for key, value in config_of(module).items() if key not in _OF_A_CALL} for module in modules)
    each = [identity_of(module, config or None, repo, part) for module, config in zip(modules, configs, strict=True)]
    first = each[0]
    if len(each) == 1:
        return first if pipe is None else evolve(first, part="")
    weights = [one.weights for one in each]
    return evolve(
        first,
        config=digest([one.config for one in each]),
        weights=digest(weights) if all(weights) else "",
        part="+".join(denoisers_of(pipe)),
    )


def repos(*objects: Any) -> Iterator[str]:
    """The repo ids or paths that these were loaded from."""
    for thing in objects:
        name = getattr(thing, "name_or_path", None) or config_of(thing).get("_name_or_path")
        if name:
            yield str(name)


def repo_of(source: str, parts: Sequence[str] = DENOISERS) -> tuple[str, str]:
    """The repo id, or of a local path its last part, and the component that was loaded from a folder in it. A pipeline's own is
    no component, though it may be called so: its ``parts`` are none."""
    return repo_and_part(os.path.abspath(source) if source and os.path.exists(source) else source, parts)


def config_of(thing: Any) -> Mapping[str, Any]:
    """The config of a pipeline, model or scheduler; empty where it has none that diffusers made."""
    config = getattr(thing, "config", None)
    return dict(config) if isinstance(config, Mapping) else {}


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
