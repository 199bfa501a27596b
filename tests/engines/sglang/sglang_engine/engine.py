"""A real denoising stage of SGLang for each model, on the CPU, and requests to it."""

from __future__ import annotations

import os
from typing import Any

from . import stand_ins

stand_ins.install()

from sglang.multimodal_gen.configs.sample.sampling_params import SamplingParams  # noqa: E402
from sglang.multimodal_gen.runtime.distributed import maybe_init_distributed_environment_and_model_parallel  # noqa: E402
from sglang.multimodal_gen.runtime.pipelines_core.schedule_batch import Req  # noqa: E402
from sglang.multimodal_gen.runtime.pipelines_core.stages.denoising import DenoisingStage  # noqa: E402
from sglang.multimodal_gen.runtime.server_args import ServerArgs  # noqa: E402
from sglang.multimodal_gen.runtime.server_args.server_args import set_global_server_args  # noqa: E402

import torch  # noqa: E402

from . import models  # noqa: E402


class Server:
    """What a worker of the engine has of one model: its settings, its models, and the stage that denoises."""

    def __init__(self, kind: str, **more: Any) -> None:
        self.kind = models.KINDS[kind]()
        config = self.kind.config
        config.precision = config.dit_precision = "fp32"
        self.args = ServerArgs(model_path=f"tiny/{kind}", pipeline_config=config, **{"num_gpus": 1, **more})
        self.use()
        torch.manual_seed(0)
        self.models = [self._model() for _ in range(self.kind.experts)]
        self.scheduler = self.kind.scheduler()
        self.stage = DenoisingStage(self.models[0], self.scheduler, transformer_2=(*self.models, None)[1])
        self.stage.set_component_residency_manager(stand_ins.Residency())

    def _model(self) -> torch.nn.Module:
        made = self.kind.model(self.kind.config.dit_config, hf_config={}).eval()
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        return made

    def use(self) -> None:
        """Make it the one of this process."""
        set_global_server_args(self.args)
        args = self.args
        maybe_init_distributed_environment_and_model_parallel(
            tp_size=args.tp_size, sp_size=args.sp_degree, cfg_degree=args.cfg_parallel_degree,
            ulysses_degree=args.ulysses_degree, ring_degree=args.ring_degree, dp_size=args.dp_size,
        )  # fmt: skip

    def request(
        self, steps: int = 12, *, size: int = 8, guided: bool = False, seed: int = 1, asks: Any = None, **more: Any
    ) -> Req:
        """A request; ``asks``: what its ``diffusers_kwargs`` ask of magpolicy."""
        scheduler = self.kind.scheduler()
        scheduler.set_timesteps(steps, device="cpu")
        generator = torch.Generator().manual_seed(seed)

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator)

        latents = random(*self.kind.latents(size))
        scale = self.kind.guidance if guided else 1.0
        given = SamplingParams(
            num_inference_steps=steps, guidance_scale=scale, prompt="a cat", height=16 * size, width=16 * size,
            diffusers_kwargs=None if asks is None else {"magpolicy": asks}, **more,
        )  # fmt: skip
        return Req(
            sampling_params=given, latents=latents, timesteps=scheduler.timesteps, scheduler=scheduler,
            raw_latent_shape=latents.shape, generator=generator, **self.kind.given(random),
        )  # fmt: skip

    def run(self, request: Req) -> torch.Tensor:
        """The latents that the stage makes of a request."""
        self.use()
        return self.stage(request, self.args).latents


os.environ.setdefault("MASTER_PORT", "29611")
