"""Which model a ``ModelPatcher`` holds, as its file gave it: what LoRAs change is not looked at."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from attrs import evolve

from magpolicy.adapter import ModelIdentity
from magpolicy_torch.adapter import identity_of
from torch import nn


def identity(patcher: Any) -> ModelIdentity:
    """The identity of the model in ``patcher``, by its weights before any patch.

    ComfyUI merges the patches of LoRAs into weights while it samples, and keeps the weights' own values. A model stays the same
    with other LoRAs and other strengths: its residuals are nearly those of the model alone, and a workflow may change a
    strength with every run.
    """
    model = patcher.model
    found = identity_of(_Unpatched(patcher), model.model_config.unet_config)
    return evolve(found, model=type(model).__name__)


class _Unpatched(nn.Module):
    """Stands for a diffusion model where its parameters are looked at."""

    def __init__(self, patcher: Any) -> None:
        super().__init__()
        self._module = (patcher.model.diffusion_model,)  # no child of this one
        own = getattr(patcher, "backup", {})
        self._own = {name.removeprefix("diffusion_model."): kept.weight for name, kept in own.items()}

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in self._module[0].named_parameters(*args, **kwargs):
            yield name, self._own.get(name, parameter)
