"""What ``magpolicy.attach`` returns of a denoising stage."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary, ref

from attrs import evolve

import torch
from magpolicy import AdapterError, ArgumentError, AttachRequest
from magpolicy.adapter import check_fits
from magpolicy_sglang._engine import WITH_SEAM, asks, ranks_of_a_request
from magpolicy_sglang._request_run import RequestRun, placed
from magpolicy_torch.adapter import Attached, BlockStack, Scoped, SharedBy, classes_of, identity_of, stack_for, unwrap, versions
from torch import nn

logger = logging.getLogger("sglang.magpolicy")
HOST = "SGLang"
RUN: Scoped[tuple[StageHandle, RequestRun]] = Scoped("magpolicy_sglang_run")
"""The run under way here, and its handle."""
ATTACHED: WeakKeyDictionary[Any, StageHandle] = WeakKeyDictionary()
"""The handle of each stage."""


class StageHandle(Attached):
    """A denoising stage of the engine, which makes one run of each request.

    Nothing is patched here: the engine's hooks look whether a handle is there for a request.

    Args:
        stage: a ``DenoisingStage``.
        request: the settings.

    Raises:
        ArgumentError: a setting that is not for this host, or a calibration of another model.
    """

    __module__ = "magpolicy_sglang"
    no_run = "send a request"

    def __init__(self, stage: Any, request: AttachRequest) -> None:
        if request.scope != "stack" or request.blocks is not None:
            raise ArgumentError("scope and blocks: in SGLang the models say themselves what is left out; leave both out")
        if request.arguments.get("learn"):
            raise ArgumentError(
                f"learn={request.learn!r}: nothing is learned from runs in SGLang; leave it out, and ship a calibration"
            )
        self._stage = ref(stage)
        models = self.models()
        self._check_fits(request)
        group = ranks_of_a_request() if request.group is None else request.group
        super().__init__(evolve(request, group=request.group if group is None else SharedBy(models, group)))
        self.on_request = False
        """Whether only requests go by it that ask for settings of their own."""
        self._stacks: WeakKeyDictionary[nn.Module, BlockStack] = WeakKeyDictionary()
        self._last: RequestRun | None = None

    def _check_fits(self, request: AttachRequest) -> None:
        """Complain about a calibration of another model, if there is one here yet: some are loaded with the first request."""
        models = self.models()
        if models:
            check_fits(request.config.given, classes_of(*models), host=HOST, roles=("cond", "uncond"))

    @property
    def target(self) -> Any:
        """The stage; ``None`` if it is gone."""
        return self._stage()

    def keeps_out(self, ctx: Any, batch: Any, server_args: Any) -> str:
        """Why the loop of a request is no run; empty where it is one."""
        if server_args.enable_breakable_cuda_graph:
            return "CUDA graphs replay what they captured (--enable-breakable-cuda-graph)"
        for name in ("enable_teacache", "enable_spectrum"):
            if getattr(batch, name, False):
                return f"the request asks for another cache, {name}"
        if self.target._cache_dit_enabled:
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
        """The stage's models: one, or two experts; none before they are loaded."""
        stage = self.target
        return [model for model in (stage.transformer, stage.transformer_2) if isinstance(model, nn.Module)]

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

    @contextmanager
    def run(self, ctx: Any, batch: Any, server_args: Any) -> Iterator[RequestRun]:
        """The run of one request, over its denoising loop.

        Raises:
            ArgumentError: the settings do not fit the request.
        """
        self._check_fits(self.request)
        levels, start = placed(ctx.scheduler, ctx.timesteps.tolist())
        guided = len(getattr(ctx.cfg_policy, "branches", ())) > 1
        scale_of = server_args.pipeline_config.get_classifier_free_guidance_scale
        guidance = float(scale_of(batch, batch.guidance_scale)) if guided else None
        with self.under_way():
            run = RequestRun(self.request, levels, start, batch, guidance, ctx.boundary_timestep)
            try:
                with RUN.set((self, run)):
                    yield run
            except BaseException:
                run.stop()
                raise
            finally:
                self._last = run
                run.end()
            logger.info("magpolicy: %s", self.report.schedule)

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
        stage = self.target
        which = identity_of(unwrap(self.models()[0]), repo=str(stage.server_args.model_path))
        return {"model": which.model, "identity": which.to_dict(), "host": HOST, "versions": versions("sglang")}
