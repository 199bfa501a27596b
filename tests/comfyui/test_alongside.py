"""With what other nodes put on a model or a prompt: it works as without us, and nothing of it is applied twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from host import models, running
from host.running import PRESETS, RULE

import magpolicy
import torch

pytestmark = pytest.mark.sampled

FEW = ("Flux", "WAN21_T2V", "QwenImage", "Chroma")
Patcher = Any


def expected(name: str, steps: int = 12, **more: Any) -> magpolicy.Schedule:
    return magpolicy.simulate(PRESETS[name], steps=steps, **(RULE | more))


def several(name: str, **area: Any) -> list[Any]:
    return [*models.conditioning(name, 0, **area), *models.conditioning(name, 4)]


@pytest.mark.parametrize(
    "area",
    [{}, {"area": (4, 4, 0, 0), "strength": 1.0}, {"mask": torch.ones(1, 64, 64), "mask_strength": 0.5}],
    ids=["two_prompts", "area", "mask"],
)
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_several_positives_and_areas(comfyui: Path, area: dict[str, Any], cfg: float) -> None:
    patcher = models.make("Flux")
    attachment = running.check(
        patcher,
        "flux",
        expected("Flux"),
        lambda m: running.sample(m, "Flux", steps=12, cfg=cfg, positive=several("Flux", **area)),
    )
    assert {"cond", "cond 2"} <= set(attachment.run_report.schedule.streams)
    assert not {"mismatch", "unsupported", "no_residual"} & attachment.run_report.report.reasons.keys()


def test_prompts_for_a_part_of_the_run(comfyui: Path) -> None:
    """A condition that comes in at half time has a history of its own, and no residual at first."""
    patcher = models.make("Flux")
    late = models.conditioning("Flux", 4, start_percent=0.5, end_percent=1.0)
    node, attachment = running.under(patcher, "flux")
    positive = [*models.conditioning("Flux", 0), *late]
    running.sample(node, "Flux", steps=12, positive=positive)
    schedule = attachment.run_report.schedule
    first = next(e for e in attachment.run_report.report.trace if e.stream == "cond 2")
    assert schedule.stream_mask("cond")[: first.step] == expected("Flux").mask[: first.step]
    assert schedule.stream_mask("cond")[first.step]  # both in one call: it computes for the new one
    assert 0 < first.step < 11
    assert not first.decision.skip


class Hint:
    """A ControlNet's place in a conditioning: gives the same additions at every step, a ControlBase of ComfyUI."""

    @staticmethod
    def make(shapes: dict[str, list[tuple[int, ...] | None]]) -> Any:
        from comfy.controlnet import ControlBase

        class Fixed(ControlBase):  # type: ignore[misc]
            calls = 0

            def get_control(self, x: Any, t: Any, cond: Any, number: int, options: Any) -> dict[str, list[Any]]:
                self.calls += 1
                generator = torch.Generator().manual_seed(5)
                made: dict[str, list[Any]] = {"input": [], "middle": [], "output": []}
                for key, sizes in shapes.items():
                    for size in sizes:
                        part = None if size is None else 0.3 * torch.randn(1, *size, generator=generator)
                        made[key].append(None if part is None else part.repeat(x.shape[0], *[1] * len(size)))
                return made

        return Fixed()


@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("Flux", {"input": [(16, 64), (16, 64)], "output": [(16, 64), None]}),
        ("Flux", {"input": [(16, 64)], "output": [(16, 64), (16, 64)]}),
        ("Flux", {"input": [(9, 64)], "output": [(5, 64)]}),  # shorter than the sequence
        ("QwenImage", {"input": [(16, 64), (16, 64), (16, 64)]}),
        ("HunyuanVideo", {"input": [(48, 64), (48, 64)], "output": [(48, 64), (48, 64)]}),
        ("SD3", {"output": [(16, 192), (16, 192)]}),
        ("SD15", {"output": [(32, 8, 8)], "middle": [(64, 4, 4)]}),
    ],
    ids=["flux", "flux-last_block", "flux-short", "qwen", "hunyuan", "sd3", "sd15"],
)
def test_control_nets(comfyui: Path, name: str, shapes: dict[str, Any], cfg: float) -> None:
    patcher = models.make(name)
    source = PRESETS.get(name) or magpolicy.Curve([1.0] * 12)
    wanted = magpolicy.simulate(source, steps=12, **RULE)

    def act(model: Patcher) -> torch.Tensor:
        positive = models.conditioning(name, 0, control=Hint.make(shapes))
        return running.sample(model, name, steps=12, cfg=cfg, positive=positive)

    try:
        controlled = act(patcher)
    except RuntimeError as error:
        pytest.skip(f"this ComfyUI cannot do it: {error}")
    assert not torch.equal(controlled, running.sample(patcher, name, steps=12, cfg=cfg))  # it does something
    attachment = running.check(patcher, source, wanted, act)
    assert not {"mismatch", "unsupported"} & attachment.run_report.report.reasons.keys()


def test_a_reference_picture(comfyui: Path) -> None:
    """FLUX Kontext: the reference's tokens go through the blocks with the picture's."""
    patcher = models.make("Flux")
    reference = torch.randn(1, 16, 6, 8, generator=torch.Generator().manual_seed(2))
    positive = models.conditioning("Flux", 0, reference_latents=[reference])
    running.check(patcher, "flux_kontext", magpolicy.simulate("flux_kontext", steps=12, **RULE),
                  lambda m: running.sample(m, "Flux", steps=12, positive=positive))  # fmt: skip


def replacing(patcher: Patcher, name: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Patcher:
    clone = patcher.clone()

    def replace(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        if "transformer_options" in args:  # where ComfyUI passes it, replacements read it
            assert args["transformer_options"]["cond_or_uncond"]
        return change(extra["original_block"](args))

    clone.set_model_patch_replace(replace, "dit", "double_block", 1)
    return clone


@pytest.mark.parametrize("name", FEW)
def test_replaced_blocks(comfyui: Path, name: str) -> None:
    patcher = models.make(name)

    def change(out: dict[str, Any]) -> dict[str, Any]:
        return out | {"img": out["img"] * 1.25}

    replaced = replacing(patcher, name, change)
    assert not torch.equal(running.sample(replaced, name), running.sample(patcher, name))
    running.check(replaced, PRESETS[name], expected(name), lambda m: running.sample(m, name, steps=12))


@pytest.mark.parametrize("name", ["Flux", "Chroma", "WAN21_T2V"])
def test_the_last_block_replaced_for_a_part_of_the_run(comfyui: Path, name: str) -> None:
    """A replacement that does nothing yet when the first step is skipped is asked at every later one all the same."""
    patcher = models.make(name)
    kind, stack = ("double_block", "blocks") if name == "WAN21_T2V" else ("single_block", "single_blocks")
    last = len(getattr(patcher.model.diffusion_model, stack)) - 1
    clone, asked = patcher.clone(), []

    def replace(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        asked.append(len(asked))
        out = extra["original_block"](args)
        return {"img": out["img"] * 1.25} if len(asked) > 8 else out

    clone.set_model_patch_replace(replace, "dit", kind, last)
    node, attachment = running.under(clone, PRESETS[name])
    spy = running.Spy.on(node)
    running.sample(node, name, steps=12)
    report = attachment.run_report.report
    assert report.skipped > 0
    assert spy.computed[:8].count(False) > 0, "the first skip comes before the replacement sets in"
    assert spy.computed[8:].count(False) > 0
    assert len(asked) == len(spy.calls) == 12
    running.same(report.schedule, expected(name))


@pytest.mark.parametrize("name", FEW)
def test_attention_overrides(comfyui: Path, name: str) -> None:
    patcher = models.make(name)
    seen = []

    def override(func: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs.get("transformer_options", {}).get("block_type"))
        return 0.5 * func(*args, **kwargs)

    patcher.model_options["transformer_options"]["optimized_attention_override"] = override
    running.sample(patcher, name, steps=1)
    if not seen:
        pytest.skip("this ComfyUI asks no one")
    running.check(patcher, PRESETS[name], expected(name), lambda m: running.sample(m, name, steps=12))


def test_patches_before_and_after_blocks(comfyui: Path) -> None:
    patcher = models.make("Flux")

    def post_input(args: dict[str, Any]) -> dict[str, Any]:
        return args | {"img": args["img"] * 1.1}

    patcher.set_model_patch(post_input, "post_input")
    running.check(patcher, "flux", expected("Flux"), lambda m: running.sample(m, "Flux", steps=12))
    patcher = models.make("QwenImage")

    def double_block(args: dict[str, Any]) -> dict[str, Any]:
        return args | {"img": args["img"] + 0.1}

    patcher.set_model_patch(double_block, "double_block")
    running.check(patcher, "qwen_image", expected("QwenImage"), lambda m: running.sample(m, "QwenImage", steps=12))


@pytest.mark.parametrize("way", ["whole", "sample_by_sample"])
def test_function_wrappers(comfyui: Path, way: str) -> None:
    """Another node calls the model in its own way: once, or for parts of the batch."""
    patcher = models.make("Flux")

    def wrapper(apply: Any, args: dict[str, Any]) -> torch.Tensor:
        if way == "whole":
            return apply(args["input"], args["timestep"], **args["c"]) * 0.9
        parts = []
        for i in range(args["input"].shape[0]):
            c = {k: v[i : i + 1] if isinstance(v, torch.Tensor) else v for k, v in args["c"].items()}
            parts.append(apply(args["input"][i : i + 1], args["timestep"][i : i + 1], **c))
        return torch.cat(parts)

    patcher.set_model_unet_function_wrapper(wrapper)
    running.check(patcher, "flux", expected("Flux"), lambda m: running.sample(m, "Flux", steps=12, batch=2))


def test_wrappers_of_other_nodes(comfyui: Path) -> None:
    from comfy.patcher_extension import WrappersMP

    patcher = models.make("WAN21_T2V")
    called = []

    def around(executor: Any, *args: Any, **kwargs: Any) -> Any:
        called.append(1)
        return executor(*args, **kwargs) * 0.9

    for kind in (WrappersMP.DIFFUSION_MODEL, WrappersMP.APPLY_MODEL):
        patcher.add_wrapper_with_key(kind, "other", around)
    running.check(patcher, PRESETS["WAN21_T2V"], expected("WAN21_T2V"), lambda m: running.sample(m, "WAN21_T2V", steps=12))
    assert called


def lora(patcher: Patcher, name: str) -> dict[str, torch.Tensor]:
    key = next(k for k, v in patcher.model.state_dict().items() if "blocks" in k and k.endswith(".weight") and v.ndim == 2)
    size = patcher.model.state_dict()[key].shape
    generator = torch.Generator().manual_seed(3)
    base = key.removesuffix(".weight")
    return {
        f"{base}.lora_up.weight": torch.randn(size[0], 2, generator=generator),
        f"{base}.lora_down.weight": torch.randn(2, size[1], generator=generator),
    }


@pytest.mark.parametrize("order", ["before", "after"])
def test_lora(comfyui: Path, order: str) -> None:
    import comfy.lora

    patcher = models.make("Flux")
    weights = lora(patcher, "Flux")
    base = next(iter(weights)).removesuffix(".lora_up.weight")
    loaded = comfy.lora.load_lora(weights, {base: f"{base}.weight"})
    plain = running.sample(patcher, "Flux", steps=12)
    if order == "before":
        changed = patcher.clone()
        assert changed.add_patches(loaded, 1.0)
        running.check(changed, "flux", expected("Flux"), lambda m: running.sample(m, "Flux", steps=12))
        assert not torch.equal(running.sample(changed, "Flux", steps=12), plain)
        return
    node, attachment = running.under(patcher, "flux")
    changed = node.clone()
    assert changed.add_patches(loaded, 1.0)
    running.sample(changed, "Flux", steps=12)
    running.same(attachment.run_report.schedule, expected("Flux"))


def test_hooks_on_a_prompt(comfyui: Path) -> None:
    """A LoRA on one of the prompts: the two are evaluated apart, each with its own weights."""
    import comfy.hooks

    patcher = models.make("Flux")
    weights = lora(patcher, "Flux")
    renamed = {k.replace("diffusion_model.", "diffusion_model.", 1): v for k, v in weights.items()}
    positive = models.conditioning("Flux", 0, hooks=comfy.hooks.create_hook_lora(renamed, 1.0, 0.0))
    plain = running.sample(patcher, "Flux", steps=12, cfg=3.0)
    act = lambda m: running.sample(m, "Flux", steps=12, cfg=3.0, positive=positive)  # noqa: E731
    hooked = act(patcher)
    node, attachment = running.under(patcher, "flux")
    result = act(node)
    assert torch.isfinite(result).all()
    assert not torch.equal(hooked, plain)
    running.same(attachment.run_report.schedule, expected("Flux"))
    assert set(attachment.run_report.schedule.streams) == {"cond", "uncond"}
    assert torch.equal(act(patcher), hooked)


@pytest.mark.parametrize("schedule", ["standard_static", "standard_uniform", "batched"])
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_context_windows(comfyui: Path, schedule: str, cfg: float) -> None:
    """Each window has histories of its own. Those that stay where they are skip as simulated, those that move compute more."""
    import comfy.context_windows as windows

    name = "WAN21_T2V"
    patcher = models.make(name)
    patcher.model_options["context_handler"] = windows.IndexListContextHandler(
        context_schedule=windows.get_matching_context_schedule(schedule),
        fuse_method=windows.get_matching_fuse_method("pyramid"),
        context_length=4,
        context_overlap=1,
        dim=2,
    )
    act = lambda m: running.sample(m, name, steps=12, cfg=cfg, size=(16, 9, 8, 8))  # noqa: E731
    node, attachment = running.under(patcher, PRESETS[name])
    plain, result = act(patcher), act(node)
    assert torch.isfinite(result).all()
    reasons = attachment.run_report.report.reasons
    assert not {"mismatch", "unsupported"} & reasons.keys()
    if schedule != "standard_uniform":
        running.same(attachment.run_report.schedule, expected(name, batched=True))
    assert len(attachment.run_report.schedule.streams) >= 3
    assert torch.equal(act(patcher), plain)


def test_guidance_by_a_second_call_with_layers_left_out(comfyui: Path) -> None:
    """Skip-layer guidance asks the model once more about the same prompt: another history."""
    from comfy_extras.nodes_slg import SkipLayerGuidanceDiT

    patcher = models.make("Flux")
    method = getattr(SkipLayerGuidanceDiT, "execute", None) or SkipLayerGuidanceDiT().skip_guidance
    made = method(patcher, 2.0, 0.0, 1.0, "1", "")
    slg = (getattr(made, "args", None) or made)[0]
    act = lambda m: running.sample(m, "Flux", steps=12, cfg=3.0)  # noqa: E731
    assert not torch.equal(act(slg), act(patcher))
    attachment = running.check(slg, "flux", expected("Flux"), act)
    assert "cond, again" in attachment.run_report.schedule.streams


def test_a_guider_of_three(comfyui: Path) -> None:
    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import Guider_DualCFG

    patcher = models.make("WAN21_T2V")
    node, attachment = running.under(patcher, PRESETS["WAN21_T2V"])
    guider = Guider_DualCFG(node)
    guider.set_conds(*(models.conditioning("WAN21_T2V", i) for i in range(3)))
    guider.set_cfg(3.0, 2.0)
    sigmas = comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), "simple", 12)
    noise = torch.randn(1, 16, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with running.quiet():
        guider.sample(noise, torch.zeros_like(noise), comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True, seed=1)
    schedule = attachment.run_report.schedule
    assert set(schedule.streams) == {"cond", "uncond", "middle"}
    running.same(schedule, magpolicy.simulate(PRESETS["WAN21_T2V"], steps=12, batched=True, **RULE))


def test_inpainting(comfyui: Path) -> None:
    patcher = models.make("WAN22_T2V")  # whose mask makes timesteps per frame
    mask = torch.ones(1, 1, 3, 8, 8)
    mask[:, :, 0] = 0
    latent = {"samples": torch.randn(1, 48, 3, 8, 8, generator=torch.Generator().manual_seed(0)), "noise_mask": mask}
    wanted = magpolicy.simulate("wan2.2_ti2v_5B", steps=12, batched=True, **RULE)
    running.check(patcher, "wan2.2_ti2v_5B", wanted, lambda m: running.sample(m, "WAN22_T2V", steps=12, cfg=3.0, latent=latent))


def test_low_memory_and_reloading(comfyui: Path) -> None:
    """Weights that are moved in for each layer, and a model that is unloaded between prompts."""
    import comfy.model_management

    patcher = models.make("Flux")
    plain = running.sample(patcher, "Flux", steps=12)
    node, attachment = running.under(patcher, "flux")
    first = running.sample(node, "Flux", steps=12)
    comfy.model_management.unload_all_models()
    with running.quiet():
        node.partially_load(torch.device("cpu"), 1)  # room for next to nothing: every layer casts its own weights
    assert node.model.model_lowvram
    assert any(getattr(m, "comfy_cast_weights", False) for m in patcher.model.modules())
    assert torch.equal(running.sample(node, "Flux", steps=12), first)
    running.same(attachment.run_report.schedule, expected("Flux"))
    comfy.model_management.unload_all_models()
    assert torch.equal(running.sample(node, "Flux", steps=12), first)
    assert torch.equal(running.sample(patcher, "Flux", steps=12), plain)


@pytest.mark.parametrize("name", FEW)
def test_residuals_wait_in_main_memory(comfyui: Path, name: str) -> None:
    patcher = models.make(name)
    running.check(
        patcher, PRESETS[name], expected(name), lambda m: running.sample(m, name, steps=12), offload="cpu",
        storage_dtype=torch.bfloat16,
    )  # fmt: skip


def test_nothing_is_held_after_a_run(comfyui: Path) -> None:
    import gc

    patcher = models.make("Flux")
    node, _ = running.under(patcher, "flux")
    running.sample(node, "Flux", steps=12)
    gc.collect()
    before = sum(isinstance(o, torch.Tensor) for o in gc.get_objects())
    running.sample(node, "Flux", steps=12)
    gc.collect()
    assert sum(isinstance(o, torch.Tensor) for o in gc.get_objects()) <= before
