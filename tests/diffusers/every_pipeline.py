"""Every pipeline class that diffusers exports: which models of it denoise, and whether they are found and attached to."""

from __future__ import annotations

import functools
import inspect
import re
from pipes import PIPES
from typing import Any

from attrs import frozen
from zoo import CASES, UNETS

import diffusers
import magpolicy

WHY_NOT = {
    "DiffusionGemmaPipeline": "A language model that denoises tokens; it has no transformer of diffusers.",
    "DreamLiteMobilePipeline": "Its U-Net was not tried.",
    "DreamLitePipeline": "Its U-Net was not tried.",
    "FluxPriorReduxPipeline": "Encodes a picture as a prompt; nothing is denoised.",
    "LLaDA2Pipeline": "A language model that denoises tokens; it has no transformer of diffusers.",
    "LTX2LatentUpsamplePipeline": "Enlarges latents in one step.",
    "LTX2VideoDiffusionDecodePipeline": "Decodes latents in a few steps of its own, inside the decoder's forward.",
    "LTXLatentUpsamplePipeline": "Enlarges latents in one step.",
    "UniDiffuserPipeline": "Deprecated in diffusers; its U-Net was not tried.",
    "WuerstchenPriorPipeline": "Deprecated in diffusers; its prior was not tried.",
}
"""Where no denoiser is found by its name, and why."""
OLD = "Deprecated in diffusers, and its models have names of their own."


@frozen
class Exported:
    """One pipeline class."""

    kind: type

    @property
    def name(self) -> str:
        return self.kind.__name__

    @property
    def old(self) -> bool:
        """Whether diffusers keeps it for old code alone."""
        return ".deprecated." in f"{self.kind.__module__}."

    @functools.cached_property
    def denoisers(self) -> dict[str, str]:
        """Component name to model class, as the constructor's types tell; of several classes the first one that is known."""
        from magpolicy_diffusers._pipeline import DENOISERS

        types = self.kind._get_signature_types()
        named = {name: [t.__name__ for t in types[name]] for name in DENOISERS if name in types}
        known = {name: next((c for c in classes if c in CASES or c in UNETS), None) for name, classes in named.items()}
        return {name: cls for name, cls in known.items() if cls is not None}

    @functools.cached_property
    def stages(self) -> dict[str, str]:
        """Of a combined pipeline: the classes of the pipelines that it calls, by attribute, as its constructor makes them."""
        made = re.findall(r"self\.(\w+) = (\w+Pipeline)\(", inspect.getsource(self.kind.__init__))
        return dict(made)

    @property
    def cases(self) -> list[Any]:
        """The tiny pipelines of this class that are run."""
        return [case for case in PIPES.values() if case.cls.split()[0] == self.name]

    @property
    def why_not(self) -> str:
        if self.denoisers:
            return ""
        return WHY_NOT.get(self.name) or (OLD if self.old else "")

    def hull(self) -> Any:
        """An instance with its denoisers, and nothing where the rest would be: enough to attach to, not to run."""
        pipe = self.kind.__new__(self.kind)
        given = {name: model(cls) for name, cls in self.denoisers.items()}
        pipe.register_modules(**dict.fromkeys(self.kind._get_signature_types()) | given)
        return pipe

    def attached(self) -> str:
        """The scope of a skip, after attaching to the hull's denoisers, all of them."""
        pipe = self.hull()
        with magpolicy.attach(pipe, speedup=2.0) as handle:
            found = {id(denoiser.module) for denoiser in handle.denoisers}
            assert found == {id(getattr(pipe, name)) for name in self.denoisers}, f"{self.name}: not all are attached to"
            return "model" if any(denoiser.stack.scope == "model" for denoiser in handle.denoisers) else "stack"


@functools.cache
def model(cls: str) -> Any:
    """A tiny model of that class; attaching leaves no trace, so one serves all pipelines."""
    return (CASES.get(cls) or UNETS[cls]).make()


@functools.cache
def exported() -> dict[str, Exported]:
    """Every pipeline class of diffusers that can be imported here, less the base class and modular ones."""
    kinds = [getattr(diffusers, name) for name in dir(diffusers)]
    found = [k for k in kinds if inspect.isclass(k) and issubclass(k, diffusers.DiffusionPipeline)]
    named = {k.__name__: Exported(k) for k in found if k is not diffusers.DiffusionPipeline}
    return {name: each for name, each in named.items() if not each.kind.__module__.startswith("diffusers.utils.dummy")}
