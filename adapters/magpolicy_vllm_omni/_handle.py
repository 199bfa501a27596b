"""What :func:`magpolicy.attach` returns for a pipeline of vLLM-Omni."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from magpolicy import AdapterError, AttachRequest
from magpolicy.adapter import ModelIdentity, check_fits
from magpolicy_torch.adapter import (
    Attached,
    CallInterceptor,
    HostCall,
    HostModel,
    HostRun,
    Learner,
    Patch,
    Scoped,
    classes_of,
    stack_for,
    unwrap,
    versions,
)
from magpolicy_vllm_omni._arguments import Arguments
from magpolicy_vllm_omni._block_stacks import stack_of
from magpolicy_vllm_omni._branches import BranchTeller
from magpolicy_vllm_omni._clock import PipelineClock
from magpolicy_vllm_omni._pipeline import HOST, denoisers_of, identity
from magpolicy_vllm_omni._ranks import together
from magpolicy_vllm_omni._runs import ForwardCall
from magpolicy_vllm_omni._settings import asked_of, for_batch
from torch import nn

logger = logging.getLogger("vllm_omni.magpolicy")

ENGINE_BOUNDARY = 0.875
"""Where Wan2.2's pipelines of vLLM-Omni change experts if neither the model nor the request says it
(``diffusion/models/wan2_2``)."""


class Handle(Attached):
    """A policy on a pipeline of vLLM-Omni. A call of the pipeline's ``forward``, one batch of requests, makes its runs.

    A request's ``extra_args["magpolicy"]`` may ask for its own settings: ``{"speedup": 1.5}``, or ``False`` for none. Branches
    of guidance are told by the methods in which the engine evaluates it, also where each rank has one branch.
    """

    __module__ = "magpolicy_vllm_omni"

    no_run = "send a request"

    def __init__(self, pipeline: nn.Module, modules: dict[str, nn.Module], request: AttachRequest) -> None:
        super().__init__(request)
        self.pipeline = pipeline
        self.target = pipeline
        """What it is attached to."""
        self.modules = modules
        """The models attached to, by their names in the pipeline."""
        self.models = [HostModel(unwrap(m), stack_for(unwrap(m), request, stack_of)) for m in modules.values()]
        self._arguments = {id(model): Arguments(model.module) for model in self.models}
        self._branches = BranchTeller(pipeline)
        self._learner = Learner.of(request, lambda: self.identity, self.provenance)
        self._call: Scoped[ForwardCall] = Scoped("magpolicy_forward")
        self._last: ForwardCall | None = None
        self._said: set[str] = set()

    @classmethod
    def attach(cls, pipeline: Any, request: AttachRequest) -> Handle:
        """Attach to a pipeline; nothing is patched if that fails.

        Raises:
            AdapterError: it has no model that denoises, or is attached already.
            ArgumentError: an option that is not known here, or the calibration is another model's.
        """
        modules = denoisers_of(pipeline)
        if not modules:
            raise AdapterError(
                f"target={type(pipeline).__name__} has no model that is given a timestep; serve it without this cache backend"
            )
        request = together(request, modules.values())
        check_fits(request.config.given, classes_of(*modules.values()), host=HOST, roles=("cond", "uncond"))
        handle = cls(pipeline, modules, request)
        calls = [CallInterceptor(model.module, partial(handle._called, model)) for model in handle.models]
        forward = Patch(pipeline, handle._forward)
        handle.install(
            *((model.stack.claim, model.stack.release) for model in handle.models),
            *((call.install, call.remove) for call in calls),
            (handle._branches.install, handle._branches.remove),
            (forward.install, forward.remove),
        )
        return handle

    @property
    def current(self) -> bool:
        """Whether the pipeline still has the models that were attached to."""
        found = denoisers_of(self.pipeline)
        return found.keys() == self.modules.keys() and all(found[name] is self.modules[name] for name in found)

    @property
    def scope(self) -> str:
        return self.models[0].stack.scope

    @property
    def runs(self) -> Sequence[HostRun]:
        call = self._call.get() or self._last
        return () if call is None else call.runs

    def provenance(self) -> Mapping[str, Any]:
        which = self.identity
        return {
            "model": which.model,
            "identity": which.to_dict(),
            "pipeline": type(self.pipeline).__name__,
            **({"repo": which.repo} if which.repo else {}),
            **self.conditions(),
            "versions": versions("vllm_omni"),
        }

    def conditions(self) -> Mapping[str, Any]:
        scheduler = getattr(self.pipeline, "scheduler", None)
        return {} if scheduler is None else {"scheduler": type(scheduler).__name__}

    @property
    def identity(self) -> ModelIdentity:
        return identity(self.pipeline)

    def _forward(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """In place of each call of the pipeline's forward."""
        if self._call.get() is not None:  # a subclass calls its parent's
            return original(*args, **kwargs)
        requests = _requests_of(args[0] if args else kwargs.get("req"))
        parameters = [request.sampling_params for request in requests]
        asked, remark = for_batch(asked_of([each.extra_args for each in parameters]), self.request)
        if asked is False:
            return original(*args, **kwargs)
        if remark:
            self._warn(remark)
        dummy = any(request.is_dummy_run() for request in requests)  # the engine measures memory, or warms up
        first = parameters[0] if parameters else None
        call = ForwardCall(
            PipelineClock(self.pipeline, getattr(first, "num_inference_steps", None)),
            self._changed(asked) if asked else self.request,
            self._boundary(first),
            None if dummy else self._learner,
            self._warn,
        )
        with self.under_way(), self._call.set(call):
            try:
                return original(*args, **kwargs)
            except BaseException:
                call.failed()
                raise
            finally:
                call.close()
                if not dummy:
                    self._last = call

    def _called(self, model: HostModel, original: HostCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """In place of each call of a model."""
        call = self._call.get()
        if call is None or model.under_way:
            return original(*args, **kwargs)
        times = partial(self._arguments[id(model)].times, args, kwargs)
        return call.call(model, self._branches.now.get(), times, original, args, kwargs)

    def _warn(self, words: str) -> None:
        """Tell whoever runs the engine, each thing once."""
        if words not in self._said:
            self._said.add(words)
            logger.warning("magpolicy: %s", words)

    def _boundary(self, parameters: Any) -> float | None:
        if len(self.models) < 2:
            return None
        for source in (self.pipeline, parameters):
            share = getattr(source, "boundary_ratio", None)
            if share is not None:
                return float(share)
        return ENGINE_BOUNDARY

    def __repr__(self) -> str:
        stacks = ", ".join(repr(model.stack) for model in self.models)
        return f"<Handle on {type(self.pipeline).__name__}, {stacks}, {'' if self._attached else 'not '}attached>"


def _requests_of(batch: Any) -> list[Any]:
    """The requests of a batch, or the one that a pipeline was given."""
    found = getattr(batch, "requests", None)
    return list(found) if found is not None else [batch] if hasattr(batch, "sampling_params") else []
