"""A pipeline of vLLM-Omni: which of its models denoise, which model that is, and the user's calibrations of it."""

from __future__ import annotations

from typing import Any

from attrs import evolve

from magpolicy.adapter import ModelIdentity, PresetMatches, digest, fits, kept_for, repo_and_part
from magpolicy_torch.adapter import classes_of, identity_of, unwrap
from magpolicy_vllm_omni._arguments import Arguments
from torch import nn

HOST = "vllm_omni"
DENOISERS = ("transformer", "transformer_2", "dit", "unet")
"""Where the engine looks itself, in a pipeline that declares nothing."""


def denoisers_of(pipeline: Any) -> dict[str, nn.Module]:
    """The pipeline's models that denoise, by attribute: of those that it declares, or of the usual names, those that are given
    a timestep. Language models that make pictures are not."""
    names = tuple(getattr(pipeline, "_dit_modules", None) or ()) or DENOISERS
    found = {name: getattr(pipeline, name, None) for name in names if "." not in name}
    return {name: module for name, module in found.items() if isinstance(module, nn.Module) and Arguments(module).denoises}


def identity(pipeline: Any) -> ModelIdentity:
    """Which model a pipeline has: class, the config that the engine read, where it was loaded from, and its weights."""
    modules = denoisers_of(pipeline)
    config = getattr(pipeline, "od_config", None)
    repo, _ = repo_and_part(str(getattr(config, "model", None) or ""))
    figures = getattr(getattr(config, "tf_model_config", None), "params", None)
    each = [identity_of(unwrap(module), figures or None, repo) for module in modules.values()]
    if len(each) == 1:
        return each[0]
    weights = [one.weights for one in each]
    return evolve(
        each[0],
        config=digest([one.config for one in each]),
        weights=digest(weights) if all(weights) else "",
        part="+".join(modules),
    )


def kept_of(pipeline: Any) -> PresetMatches:
    """The user's calibrations of a pipeline's model, the nearest first."""
    modules = denoisers_of(pipeline)
    if not modules:
        return PresetMatches.of([])
    classes = classes_of(*modules.values())
    return PresetMatches(preset for preset in kept_for(identity(pipeline)) if fits(preset, classes, host=HOST))
