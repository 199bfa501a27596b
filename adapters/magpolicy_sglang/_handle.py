"""What ``magpolicy.attach`` returns of a denoising stage."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from magpolicy import AdapterError, ArgumentError, AttachRequest
from magpolicy_sglang._engine import WITH_SEAM, asks
from magpolicy_sglang._request_run import RequestRun, span_of
from magpolicy_torch.adapter import Attached, BlockStack, Scoped, identity_of, stack_for, unwrap, versions
from torch import nn

logger = logging.getLogger(__name__)
RUN: Scoped[tuple[StageHandle, RequestRun]] = Scoped("magpolicy_sglang_run")
"""The run under way here, and its handle."""
ATTACHED: WeakKeyDictionary[Any, StageHandle] = WeakKeyDictionary()
"""The handles of stages that were attached to by themselves."""


class StageHandle(Attached):
    """A denoising stage of the engine, which makes one run of each request.

    Nothing is patched here: the engine's hooks look whether a handle is there for a request.

    Args:
        stage: a ``DenoisingStage``.
        request: the settings.
    """

    __module__ = "magpolicy_sglang"
    no_run = "send a request"

    def __init__(self, stage: Any, request: AttachRequest) -> None:
        super().__init__(request)
        if request.scope != "stack" or request.blocks is not None:
            raise ArgumentError("scope and blocks: in SGLang the models say themselves what is left out; leave both out")
        if request.safeguard and torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            raise ArgumentError(
                f"safeguard={request.safeguard!r} measures on each rank by itself, but ranks must decide alike; leave it out "
                "on several ranks"
            )
        self.stage = stage
        self._stacks: WeakKeyDictionary[nn.Module, BlockStack] = WeakKeyDictionary()
        self._last: RequestRun | None = None
        self._said: set[str] = set()

    def keeps_out(self, ctx: Any, batch: Any, server_args: Any) -> str:
        """Why the loop of a request is no run; empty where it is one."""
        if server_args.enable_breakable_cuda_graph:
            return "CUDA graphs replay what they captured"
        for name in ("enable_teacache", "enable_spectrum"):
            if getattr(batch, name, False):
                return f"the request asks for another cache, {name}"
        if self.stage._cache_dit_enabled:
            return "Cache-DiT is on"
        signs = [branch.is_conditional for branch in getattr(ctx.cfg_policy, "branches", ())]
        if len(set(signs)) < len(signs):
            return f"guidance in {len(signs)} branches, which cannot be told apart"
        try:
            for model in self.models():
                self.stack_of(model)
        except AdapterError as error:
            return str(error)
        return ""

    def models(self) -> list[nn.Module]:
        """The stage's models: one, or two experts."""
        return [model for model in (self.stage.transformer, self.stage.transformer_2) if model is not None]

    def stack_of(self, model: nn.Module) -> BlockStack:
        """The blocks of ``model``. Raises AdapterError if it does not ask before it runs them."""
        inner = unwrap(model)
        stack = self._stacks.get(inner)
        if stack is None:
            if not asks(inner):
                raise AdapterError(
                    f"{type(inner).__name__} does not ask before it runs its blocks; these do: {', '.join(sorted(WITH_SEAM))}"
                )
            stack = self._stacks[inner] = stack_for(inner, self.request)
        return stack

    def say(self, why: str) -> None:
        """Log once why requests compute."""
        if why not in self._said:
            self._said.add(why)
            logger.warning("magpolicy: every step computes: %s", why)

    @contextmanager
    def run(self, ctx: Any, batch: Any) -> Iterator[RequestRun]:
        """The run of one request, over its denoising loop.

        Raises:
            ArgumentError: the settings do not fit the request.
        """
        scheduler = ctx.scheduler
        sigmas = getattr(scheduler, "sigmas", None)
        full = getattr(getattr(scheduler, "config", None), "num_train_timesteps", None) or 1000
        listed = sigmas.tolist() if isinstance(sigmas, torch.Tensor) and sigmas.ndim == 1 else []
        span = span_of(ctx.timesteps.tolist(), listed, float(full), ctx.boundary_timestep)
        guided = len(getattr(ctx.cfg_policy, "branches", ())) > 1
        with self.under_way():
            run = RequestRun(self.request, span, batch, float(batch.guidance_scale) if guided else None)
            try:
                with RUN.set((self, run)):
                    yield run
            except BaseException:
                run.stop()
                raise
            finally:
                run.end()
                self._last = run
            logger.info("magpolicy: %s", self.report.schedule)
            if run.in_vain:
                self.say(run.in_vain)

    def called(self, run: RequestRun, model: nn.Module, step: int, original: Callable[[], Any], device: torch.device) -> Any:
        """One call of a model in ``run``."""
        return run.call(unwrap(model), self.stack_of(model), step, original, device)

    @property
    def scope(self) -> str:
        return "stack"

    @property
    def runs(self) -> Sequence[RequestRun]:
        here = RUN.get()
        run = here[1] if here is not None and here[0] is self else self._last
        return () if run is None else (run,)

    def provenance(self) -> Mapping[str, Any]:
        model = unwrap(self.models()[0])
        which = identity_of(model, repo=str(self.stage.server_args.model_path))
        return {"model": which.model, "identity": which.to_dict(), "versions": versions("sglang")}
