"""One real worker of vLLM-Omni for each model, on the CPU, and requests to it."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import models, stand_ins

stand_ins.install()

from vllm_omni.diffusion.data import OmniDiffusionConfig  # noqa: E402
from vllm_omni.diffusion.request import DUMMY_DIFFUSION_REQUEST_ID, OmniDiffusionRequest  # noqa: E402
from vllm_omni.diffusion.worker import diffusion_model_runner as runner_module  # noqa: E402
from vllm_omni.diffusion.worker.diffusion_worker import DiffusionWorker  # noqa: E402
from vllm_omni.inputs.data import OmniDiffusionSamplingParams  # noqa: E402

import magpolicy  # noqa: E402
import magpolicy_vllm_omni  # noqa: E402
import torch  # noqa: E402
from magpolicy_vllm_omni import _plugin  # noqa: E402

if not magpolicy.manager().is_registered(_plugin):  # installed before this adapter was there
    magpolicy.manager().register(_plugin)
gc.freeze()  # the engine collects garbage several times as it starts; half a second each over all that was imported
CLASSES = {"flux": "FluxPipeline", "wan": "WanPipeline", "wan_two_experts": "WanPipeline"}
_folder = Path(tempfile.mkdtemp(prefix="magpolicy-vllm-omni-"))
_workers: dict[str, Any] = {}
_configs: dict[str, Any] = {}


def folder(kind: str) -> Path:
    """Where the model ``kind`` is on the disk."""
    place = _folder / kind
    if not place.exists():
        getattr(models, kind)(place)
    return place


def config(kind: str, **more: Any) -> Any:
    """How the engine is told about a model."""
    found = OmniDiffusionConfig(
        model=str(folder(kind)), model_class_name=CLASSES[kind], dtype=torch.float32,
        **{"num_gpus": 1, "enforce_eager": True, **more},
    )  # fmt: skip
    found.enrich_config()
    return found


def worker(kind: str) -> Any:
    """The worker of a model, without a cache."""
    if kind not in _workers:
        for other in list(_workers):  # a process holds one: it owns the process groups
            _workers.pop(other).shutdown()
        _configs[kind] = config(kind)
        _workers[kind] = DiffusionWorker(0, 0, _configs[kind])
    return _workers[kind]


def fresh(kind: str, **more: Any) -> Any:
    """A worker made from nothing, as the engine makes it at its start."""
    for other in list(_workers):
        _workers.pop(other).shutdown()
    made = _workers[kind] = DiffusionWorker(0, 0, config(kind, **more))
    _configs[kind] = made.od_config
    return made


@contextmanager
def cached(kind: str, backend: str = "magpolicy", *, enable: bool = True, runner: Any = None, **settings: Any) -> Iterator[Any]:
    """The runner of a model, and in it the cache backend of that name, chosen and enabled as in ``load_model``."""
    from vllm_omni.diffusion.data import DiffusionCacheConfig

    magpolicy_vllm_omni.register()
    runner = runner or worker(kind).model_runner
    chosen = runner_module.get_cache_backend(backend, DiffusionCacheConfig.from_dict(settings))
    if enable:
        chosen.enable(runner.pipeline)
    runner.cache_backend = chosen
    try:
        yield runner
    finally:
        runner.cache_backend = None
        if backend == "magpolicy":
            chosen.handle.detach()
        else:
            for module in runner.pipeline.modules():  # the engine's own have no way to be disabled
                if (registry := getattr(module, "_hook_registry", None)) is not None:
                    for name in list(registry._hooks):
                        registry.remove_hook(name)


def request(
    kind: str,
    steps: int | None = 12,
    *,
    seed: int = 3,
    guided: bool = False,
    dummy: bool = False,
    magpolicy: Any = None,
    size: int | None = None,
    **more: Any,
) -> Any:
    """A request; ``magpolicy``: what its ``extra_args`` ask for."""
    size = size or (16 if kind == "flux" else 32)
    given = OmniDiffusionSamplingParams(
        num_inference_steps=steps, height=size, width=size, seed=seed, output_type="latent",
        extra_args={} if magpolicy is None else {"magpolicy": magpolicy}, **more,
    )  # fmt: skip
    prompt = {"prompt": "a cat"}
    if kind.startswith("wan"):
        given.num_frames = 5
        given.guidance_scale = 4.0 if guided else 1.0
    elif guided:
        given.true_cfg_scale = 3.0
    if guided:
        prompt["negative_prompt"] = "dog"
    return OmniDiffusionRequest(
        prompt=prompt, sampling_params=given, request_id=DUMMY_DIFFUSION_REQUEST_ID if dummy else f"request-{seed}"
    )


def run(runner: Any, requests: Sequence[Any]) -> list[torch.Tensor]:
    """The latents that the runner makes of a batch of requests."""
    made = runner._execute_request_list(
        list(requests), od_config=runner.od_config, allow_single_output=len(requests) == 1,
        require_request_batch_support=len(requests) > 1, record_name="test",
    )  # fmt: skip
    return [each.result.output for each in made.runner_outputs]
