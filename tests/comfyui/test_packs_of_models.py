"""Node packs of other people that change the model, its weights or where they lie, or sample a picture in parts."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from host import models, running
from host.packs import pack, put_back

import magpolicy
import torch

STEPS = 12
CURVE = magpolicy.Curve([1.0] * STEPS)
RULE = {"threshold": 1.0, "max_skips": 2, "retention": 0.2}
IDLE = {"threshold": 0.0, "max_skips": 0, "retention": 1.0}
EXPECTED = magpolicy.simulate(CURVE, **RULE)


def both_orders(patcher: Any, change: Callable[[Any], Any], act: Callable[[Any], torch.Tensor]) -> None:
    """The pack's node before ours and after: never skipping is bit-equal, and what ran is as simulated."""
    plain = act(change(patcher.clone()))
    assert not torch.equal(plain, act(patcher)), "the pack's node did nothing"
    for first in ("theirs", "ours"):
        for settings in (IDLE, RULE):
            if first == "theirs":
                under, attachment = running.under(change(patcher.clone()), CURVE, **settings)
            else:
                ours, attachment = running.under(patcher, CURVE, **settings)
                under = change(ours)
            made, run = act(under), attachment.run_report
            if settings is IDLE:
                assert torch.equal(made, plain), f"{first} first: a policy that never skips changed the result"
            else:
                assert torch.isfinite(made).all()
                running.same(run.schedule, EXPECTED)
                assert not torch.equal(made, plain), run.text


@pytest.mark.parametrize("name", ["Flux", "WAN21_T2V", "SDXL"])
def test_gguf(comfyui: Path, name: str) -> None:
    """Weights of eight bits that its layers unpack at each call, and its own ModelPatcher."""
    loaded = pack("ComfyUI-GGUF")
    import comfy.lora
    import gguf

    module = sys.modules[loaded.__name__ + ".ops"]
    form, packed, weights = gguf.GGMLQuantizationType.Q8_0, 0, {}
    for key, value in models.make(name).model.diffusion_model.state_dict().items():
        kind, data = gguf.GGMLQuantizationType.F32, value
        if value.ndim == 2 and value.shape[1] % 32 == 0 and key.endswith("weight"):
            kind, packed = form, packed + 1
            data = torch.from_numpy(gguf.quants.quantize(value.numpy(), form))
        weights[key] = module.GGMLTensor(data, tensor_type=kind, tensor_shape=value.shape)
    assert packed > 5
    bare = models.make(name, _operations=module.GGMLOps())
    bare.model.diffusion_model.load_state_dict(weights, strict=False)
    patcher = sys.modules[loaded.__name__ + ".nodes"].GGUFModelPatcher.clone(bare)
    act = lambda m: running.sample(m, name, steps=STEPS, cfg=3.0)  # noqa: E731
    running.check(patcher, CURVE, EXPECTED, act, **RULE)

    def with_lora(to: Any) -> Any:
        """A LoRA on a layer of eight bits, which the pack adds as it unpacks."""
        key = next(key for key, value in weights.items() if value.tensor_type == form)
        rows, columns = weights[key].tensor_shape
        made = to.clone()
        up, down = (torch.randn(*size, generator=torch.Generator().manual_seed(3)) for size in ((rows, 4), (4, columns)))
        patches = comfy.lora.load_lora({"it.lora_up.weight": up, "it.lora_down.weight": down}, {"it": f"diffusion_model.{key}"})
        assert made.add_patches(patches, 1.0)
        return made

    both_orders(patcher, with_lora, act)


@pytest.fixture
def multigpu(comfyui: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The pack replaces functions of ComfyUI when it is imported: here, for one test."""
    import comfy.model_management
    import comfy.model_patcher
    import comfy.sample
    import comfy.sd
    import nodes

    kept = (comfy.model_management, comfy.model_patcher, comfy.model_patcher.ModelPatcher, comfy.sample, comfy.sd, nodes)
    with put_back(*kept):
        loaded = pack("ComfyUI-MultiGPU")
        import server

        monkeypatch.setattr(server.PromptServer.instance, "prompt_queue", MagicMock(name="prompt_queue"))
        yield loaded
    for module in [module for module in sys.modules if module.startswith(loaded.__name__)]:
        del sys.modules[module]


@pytest.mark.parametrize("name", ["Flux", "WAN21_T2V", "SDXL"])
def test_distorch(name: str, multigpu: Any) -> None:
    """A loader under DisTorch 2, which puts blocks onto a donor device; here both devices are the CPU."""

    class Loader:
        FUNCTION = "load"

        @classmethod
        def INPUT_TYPES(cls) -> dict[str, Any]:
            return {"required": {}}

        def load(self) -> tuple[Any]:
            return (models.make(name),)

    node = sys.modules[multigpu.__name__ + ".wrappers"].override_class_with_distorch_safetensor_v2(Loader)()
    (patcher,) = node.override(compute_device="cpu", virtual_vram_gb=1.0, donor_device="cpu")
    assert patcher.model._distorch_v2_meta
    running.check(patcher, CURVE, EXPECTED, lambda m: running.sample(m, name, steps=STEPS, cfg=3.0), **RULE)


class Vae:
    """In the place of a VAE: pixels are averaged, latents repeated."""

    latent_dim, downscale_ratio, upscale_ratio = 2, 8, 8

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        small = torch.nn.functional.avg_pool2d(pixels.movedim(-1, 1), 8)
        return torch.cat([small, small[:, :1]], dim=1)

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(latent[:, :3]).repeat_interleave(8, 2).repeat_interleave(8, 3).movedim(1, -1)

    def spacial_compression_encode(self) -> int:
        return 8


@pytest.mark.parametrize("mode", ["Linear", "Chess"])
def test_ultimate_sd_upscale(comfyui: Path, mode: str) -> None:
    """Each tile is a sampling of its own."""
    nodes = pack("ComfyUI_UltimateSDUpscale", faked=("spandrel",)).NODE_CLASS_MAPPINGS
    name = "SDXL"
    picture = torch.rand(1, 128, 128, 3, generator=torch.Generator().manual_seed(0))

    def act(patcher: Any) -> torch.Tensor:
        with running.quiet():
            (made,) = nodes["UltimateSDUpscaleNoUpscale"]().upscale(
                picture, patcher, models.conditioning(name, 0), models.conditioning(name, 1), Vae(), 5, STEPS, 3.0, "euler",
                "simple", 1.0, mode, 64, 64, 4, 0, "None", 1.0, 4, 16, 8, True, False,
            )  # fmt: skip
        return made

    patcher = models.make(name)
    plain = act(patcher)
    assert torch.equal(act(running.under(patcher, CURVE, **IDLE)[0]), plain)
    node, attachment = running.under(patcher, CURVE, **RULE)
    reports: list[Any] = []
    attachment.finished = lambda _, report: reports.append(report)
    assert not torch.equal(act(node), plain)
    assert len(reports) == 4
    for report in reports:
        running.same(report.schedule, EXPECTED)


def test_advanced_controlnet(comfyui: Path) -> None:
    """Reference: a picture is called before each call of the sample, and its attention put into that call's blocks."""
    loaded = pack("ComfyUI-Advanced-ControlNet").__name__ + ".adv_control"
    name = "SD15"
    reference = sys.modules[f"{loaded}.nodes_reference"].ReferenceControlNetNode.execute("reference_attn", 0.5, 1.0)
    wrapper = sys.modules[f"{loaded}.control_reference"].ReferencePreprocWrapper
    hint = wrapper(condhint=torch.randn(1, *models.TINY[name].latent, generator=torch.Generator().manual_seed(4)))
    apply = sys.modules[f"{loaded}.nodes_main"].AdvancedControlNetApply.execute
    pos, neg = models.conditioning(name, 0), models.conditioning(name, 1)

    def act(patcher: Any) -> torch.Tensor:
        first, second = apply(pos, neg, reference.args[0], hint, 1.0, 0.0, 1.0).args
        return running.sample(patcher, name, steps=STEPS, cfg=3.0, positive=first, negative=second)

    deep = {
        "channel_mult": [1, 1, 1, 1],
        "num_res_blocks": [2] * 4,
        "transformer_depth": [1] * 8,
        "transformer_depth_output": [1] * 12,
    }
    patcher = models.make(name, **deep)  # it counts on so many blocks
    plain = act(patcher)
    assert not torch.equal(plain, running.sample(patcher, name, steps=STEPS, cfg=3.0)), "the reference did nothing"
    assert torch.equal(act(running.under(patcher, CURVE, **IDLE)[0]), plain)
    node, attachment = running.under(patcher, CURVE, **RULE)
    assert torch.isfinite(act(node)).all()
    run = attachment.run_report
    assert run.report.skipped > 0 or run.report.problems, run.text


FACES = (
    "insightface", "insightface.app", "insightface.utils", "insightface.utils.download", "insightface.utils.storage",
    "facexlib", "facexlib.parsing", "facexlib.utils", "facexlib.utils.face_restoration_helper", "facexlib.utils.misc",
    "facexlib.detection", "facexlib.recognition", "torchvision.ops.misc", "ftfy", "timm", "timm.models", "timm.models.layers",
    "timm.layers", "timm.loss", "timm.data", "timm.models.registry", "torchvision.ops.boxes", "spandrel",
)  # fmt: skip


def test_pulid(comfyui: Path) -> None:
    """A face's embedding is added between the blocks, by functions in the place of blocks and of the model's own forward.

    What is faked: who finds the face (the libraries ``FACES``), so what the node does with its embedding is done here.
    """
    loaded = pack("ComfyUI_PuLID_Flux_ll", faked=FACES).__name__
    from comfy.model_patcher import ModelPatcher
    from comfy.patcher_extension import WrappersMP

    hook, file = sys.modules[f"{loaded}.PulidFluxHook"], sys.modules[f"{loaded}.pulidflux"]
    name, width = "Flux", models.TINY["Flux"].config["hidden_size"]
    inner = torch.nn.Module()
    made = [sys.modules[f"{loaded}.encoders_flux"].PerceiverAttentionCA(dim=width, kv_dim=16) for _ in range(20)]
    inner.pulid_ca = torch.nn.ModuleList(made)
    models.draw(inner)
    face = ModelPatcher(inner, torch.device("cpu"), torch.device("cpu"))
    settings = {
        "pulid_model": face, "weight": 1.0, "embedding": torch.randn(1, 4, 16), "sigma_start": 1.0, "sigma_end": 0.0,
        "mask": None,
    }  # fmt: skip

    def change(patcher: Any) -> Any:
        patcher = patcher.clone()
        for place, count in (("double_block", 19), ("single_block", 38)):
            for index in range(0, count, 2):
                hook.set_model_dit_patch_replace(patcher, settings | {"ca_idx": 0}, (place, index))
        last = len(patcher.model.diffusion_model.double_blocks) - 1  # of the full model that is block 18, by its number
        end = hook.LastDitDoubleBlockReplace(hook.pulid_patch, **settings, ca_idx=0)
        patcher.set_model_patch_replace(end, "dit", "double_block", last)
        patcher.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "pulid", file.pulid_outer_sample_wrappers_with_override)
        patcher.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "pulid", file.pulid_apply_model_wrappers)
        return patcher

    act = lambda m: running.sample(m, name, steps=STEPS)  # noqa: E731
    try:
        act(change(models.make(name)))
    except Exception as error:
        pytest.skip(f"it does not run on this ComfyUI by itself: {type(error).__name__}: {error}")
    both_orders(models.make(name), change, act)


DETECTORS = ("ultralytics", "segment_anything", "mmcv", "mmdet", "torchvision.datasets.utils", "skimage.measure", "spandrel")


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_sde"])
def test_impact_pack(comfyui: Path, sampler: str) -> None:
    """Its own samplers of a region after the other, each step a sampling of its own."""
    nodes = pack("ComfyUI-Impact-Pack", faked=DETECTORS).NODE_CLASS_MAPPINGS
    name = "SDXL"
    pos, neg = models.conditioning(name, 0), models.conditioning(name, 1)

    def act(patcher: Any) -> torch.Tensor:
        pipe = (patcher, None, Vae(), pos, neg)
        with running.quiet():
            (provider,) = nodes["KSamplerProvider"].doit(5, STEPS, 3.0, sampler, "simple", 1.0, pipe)
            torch.manual_seed(3)
            made: torch.Tensor = provider.sample(models.latent(name))["samples"]
        return made

    patcher = models.make(name)
    plain = act(patcher)
    assert torch.equal(act(running.under(patcher, CURVE, **IDLE)[0]), plain)
    node, attachment = running.under(patcher, CURVE, **RULE)
    assert not torch.equal(act(node), plain)
    if sampler == "euler":
        running.same(attachment.run_report.schedule, EXPECTED)


@pytest.mark.parametrize("name", ["Flux", "SDXL"])
def test_inspire_pack(comfyui: Path, name: str) -> None:
    """Its KSampler with progress, and a guider whose guidance falls from step to step."""
    pack("ComfyUI-Impact-Pack", faked=DETECTORS)  # whose samplers it calls
    nodes = pack("ComfyUI-Inspire-Pack").NODE_CLASS_MAPPINGS
    import comfy.samplers

    pos, neg = models.conditioning(name, 0), models.conditioning(name, 1)

    def progress(patcher: Any) -> torch.Tensor:
        node = nodes["KSamplerProgress //Inspire"]
        with running.quiet():
            made: torch.Tensor = node.doit(
                patcher, 3, STEPS, 3.0, "euler", "simple", pos, neg, models.latent(name), 1.0, "CPU", 1, True, False
            )[0]["samples"]
        return made

    def falling(patcher: Any) -> torch.Tensor:
        sigmas = comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), "simple", STEPS)
        guider, _ = nodes["ScheduledCFGGuider //Inspire"]().get_guider(patcher, pos, neg, sigmas, 6.5, 1.0, "log")
        noise = torch.randn(1, *models.TINY[name].latent, generator=torch.Generator().manual_seed(1))
        with running.quiet():
            euler = comfy.samplers.sampler_object("euler")
            made: torch.Tensor = guider.sample(noise, torch.zeros_like(noise), euler, sigmas, disable_pbar=True, seed=1)
        return made

    for act in (progress, falling):
        patcher = models.make(name)
        plain = act(patcher)
        assert torch.equal(act(running.under(patcher, CURVE, **IDLE)[0]), plain)
        node, attachment = running.under(patcher, CURVE, **RULE)
        assert not torch.equal(act(node), plain)
        running.same(attachment.run_report.schedule, EXPECTED)
