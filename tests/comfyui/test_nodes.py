"""The nodes themselves: names, inputs, messages, files."""

from __future__ import annotations

import json
import logging
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
from host import models, running

import magpolicy
import torch

ORIGIN = ["model", "model_type", "magcache_thresh", "retention_ratio", "magcache_K", "start_step", "end_step"]
VALUES = {"magcache_thresh": 0.24, "retention_ratio": 0.2, "magcache_K": 4, "start_step": 0, "end_step": -1}
ORIGIN_TYPES = [
    "flux", "flux_kontext", "chroma", "qwen_image", "hunyuan_video", "hunyuan_video1.5", "wan2.1_t2v_1.3B", "wan2.1_t2v_14B",
    "wan2.1_i2v_480p_14B", "wan2.1_i2v_720p_14B", "wan2.1_vace_1.3B", "wan2.1_vace_14B",
]  # fmt: skip


def test_inputs_are_the_origins_and_then_ours(nodes: dict[str, Any]) -> None:
    inputs = nodes["MagCache"].INPUT_TYPES()
    # The widgets of saved workflows are told by their order: required ones first.
    assert [*inputs["required"], *inputs["optional"]][: len(ORIGIN)] == ORIGIN
    assert {"start_step", "end_step"} <= inputs["optional"].keys()  # an API caller may leave them out
    assert list(nodes["MagCacheCalibration"].INPUT_TYPES()["required"]) == ["model", "model_type"]
    assert list(nodes["CompileModel"].INPUT_TYPES()["required"]) == ["model", "mode", "backend", "fullgraph", "dynamic"]
    assert all(nodes[name].RETURN_TYPES[0] == "MODEL" for name in ("MagCache", "MagCacheCalibration", "CompileModel"))
    assert "settings" in inputs["optional"]
    kinds, about = inputs["required"]["model_type"]
    assert about["default"] == kinds[0] == "auto"
    assert set(ORIGIN_TYPES) <= set(kinds)
    assert {"wan2.2_t2v_14B", "wan2.2_i2v_14B", "wan2.2_ti2v_5B"} <= set(kinds)
    assert len(set(kinds)) == len(kinds)


def test_the_origins_names_for_calibrating_are_taken(nodes: dict[str, Any]) -> None:
    (kinds, _) = nodes["MagCacheCalibration"].INPUT_TYPES()["required"]["model_type"]
    names = {"chroma_calibration": "chroma", "flux_calibration": "flux", "flux_kontext_calibration": "flux_kontext",
             "hunyuanvideo1.5": "hunyuan_video1.5"}  # fmt: skip
    patcher = models.make("Flux")
    for name, same in names.items():
        assert name in kinds
        (one,), (other,) = (nodes["MagCacheCalibration"]().apply(patcher, model_type=given) for given in (name, same))
        assert _source(one) == _source(other)


def _source(patcher: Any) -> Any:
    from magpolicy_comfyui._runs import attached

    attachment = attached(patcher)
    assert attachment is not None
    return attachment.settings.source


def test_every_model_type_is_one(nodes: dict[str, Any]) -> None:
    from magpolicy_comfyui.nodes import _preset_menu

    for kind in _preset_menu.choices(auto=False):
        found = _preset_menu.find(kind)
        assert found is not None
        assert len(found.curve) > 1


@pytest.mark.parametrize("kind", ORIGIN_TYPES)
def test_a_workflow_of_the_origin_runs(nodes: dict[str, Any], kind: str) -> None:
    patcher = models.make("Flux")
    (node,) = nodes["MagCache"]().apply(model=patcher, model_type=kind, **VALUES)
    assert torch.isfinite(running.sample(node, "Flux", steps=10)).all()


def test_own_names_are_there_too(nodes: dict[str, Any]) -> None:
    assert nodes["MagPolicy"] is nodes["MagCache"]
    assert nodes["MagPolicyCalibration"] is nodes["MagCacheCalibration"]
    assert nodes["MagPolicyCompile"] is nodes["CompileModel"]


def test_the_input_model_is_left_alone(nodes: dict[str, Any]) -> None:
    patcher = models.make("Flux")
    nodes["MagCache"]().apply(model=patcher, model_type="flux", **VALUES)
    assert not any(patcher.wrappers.values())
    running.untouched(patcher)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"magcache_thresh": -2.0}, "magcache_thresh=-2"),
        ({"magcache_K": -2}, "magcache_K=-2"),
        ({"retention_ratio": 2.0}, "retention_ratio=2"),
        ({"model_type": "file: gone.json"}, "gone.json"),
        ({"forecast": "calibrated", "model_type": "flux"}, "Calibration"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_bad_values_are_named(nodes: dict[str, Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises(magpolicy.MagPolicyError, match=message):
        nodes["MagCache"]().apply(model=models.make("Flux"), **({"model_type": "flux"} | VALUES | change))


def figures(patcher: Any, **config: Any) -> Any:
    """The tiny model with the config of a published one: what auto looks at."""
    patcher.model.model_config.unet_config.update(config)
    return patcher


FLUX = {"depth": 19, "depth_single_blocks": 38}
WAN_14B = {"dim": 5120, "num_layers": 40}
AUTO = [
    ("Flux", FLUX, {}, "flux.1-dev"),
    ("Flux", FLUX, {"reference": True}, "flux.1-kontext-dev-comfyui"),
    ("FluxSchnell", FLUX, {}, "flux.1-schnell-4-doc-example"),
    ("Chroma", FLUX, {}, "chroma"),
    ("QwenImage", {"num_layers": 60}, {}, "qwen-image-comfyui"),
    ("QwenImage", {"num_layers": 60}, {"reference": True}, "qwen-image-edit"),
    ("HunyuanVideo", {"depth": 20, "depth_single_blocks": 40}, {}, "hunyuanvideo-t2v-720p"),
    ("HunyuanVideo15", {}, {"steps": 20}, "hunyuanvideo-1.5-t2v-20"),
    ("HunyuanVideo15", {}, {"steps": 30}, "hunyuanvideo-1.5-t2v-40"),
    ("WAN21_T2V", {"dim": 1536, "num_layers": 30}, {}, "wan2.1-t2v-1.3b"),
    ("WAN21_T2V", WAN_14B, {}, "wan2.1-t2v-14b"),
    ("WAN21_T2V", WAN_14B, {"start_step": 0, "last_step": 4}, "wan2.2-t2v-a14b"),
    *(
        ("WAN21_T2V", WAN_14B, {"scheduler": scheduler, "steps": 20}, "wan2.1-t2v-14b")
        for scheduler in ("ddim_uniform", "beta", "linear_quadratic", "kl_optimal")
    ),
    ("WAN21_T2V", WAN_14B, {"scheduler": "karras", "last_step": 2}, "wan2.2-t2v-a14b"),
    ("WAN21_T2V", WAN_14B, {"scheduler": "ddim_uniform", "steps": 20, "denoise": 0.5}, "wan2.2-t2v-a14b"),
    ("WAN21_I2V", WAN_14B, {}, "wan2.1-i2v-14b-480p"),
    ("WAN21_Vace", WAN_14B, {}, "wan2.1-vace-14b"),
    ("WAN22_T2V", {"dim": 3072, "num_layers": 30}, {}, "wan2.2-ti2v-5b-t2v"),
]


@pytest.mark.parametrize(("name", "config", "how", "preset"), AUTO, ids=[f"{a[3]}" for a in AUTO])
def test_auto(nodes: dict[str, Any], name: str, config: dict[str, Any], how: dict[str, Any], preset: str) -> None:
    from magpolicy_comfyui._runs import attached

    patcher = figures(models.make(name), **config)
    (node,) = nodes["MagCache"]().apply(model=patcher, model_type="auto", **VALUES)
    how = dict(how)
    if how.pop("reference", False):
        latent = torch.randn(1, *models.TINY[name].latent, generator=torch.Generator().manual_seed(1))
        how["positive"] = models.conditioning(name, 0, reference_latents=[latent])
    running.sample(node, name, **({"steps": 10} | how))
    attachment = attached(node)
    assert attachment is not None
    assert attachment.run_report is not None
    assert attachment.run_report.source == preset


def test_auto_has_its_published_settings_though_a_calibration_of_that_name_is_kept(
    nodes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from magpolicy_comfyui._runs import attached
    from magpolicy_comfyui.nodes import _preset_menu
    from magpolicy_comfyui.server._routes import preview

    monkeypatch.setenv("MAGPOLICY_HOME", str(tmp_path))
    rows = torch.randn(12, 4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).cumsum(0).numpy()
    found = magpolicy.Calibration.from_residuals({"cond": rows}, window=6)
    mine = attrs.evolve(found, name="mine", aliases=("flux.1-dev", "flux"))
    asked = json.dumps({"inputs": {"model_type": "flux"}, "sampler": {"steps": 20}}).encode()
    before = preview(asked)
    magpolicy.keep(mine)
    patcher = figures(models.make("Flux"), **FLUX)
    for kind in ("auto", "flux"):
        for speedup, source in ((0.0, "flux.1-dev"), (2.0, "mine")):
            values = VALUES | {"model_type": kind, "settings": "the preset's", "speedup": speedup}
            (node,) = nodes["MagCache"]().apply(model=patcher, **values)
            running.sample(node, "Flux", steps=10)
            run_report = attached(node).run_report  # type: ignore[union-attr]
            assert run_report is not None
            assert run_report.source == source
            assert repr(source) in run_report.text
    assert preview(asked) == before
    assert _preset_menu.find("flux").name == "mine"  # type: ignore[union-attr]


@pytest.mark.parametrize("more", [{}, {"semantics": "official/flux"}, {"forecast": "calibrated"}, {"settings": "the preset's"}])
def test_auto_plans_for_a_model_nobody_calibrated_and_says_so(nodes: dict[str, Any], more: dict[str, Any]) -> None:
    from magpolicy_comfyui._runs import attached

    patcher = models.make("SD15")
    (node,) = nodes["MagCache"]().apply(model=patcher, model_type="auto", **(VALUES | {"start_step": 3}), **more)
    running.sample(node, "SD15", steps=12)
    attachment = attached(node)
    assert attachment is not None
    assert attachment.run_report is not None
    report = attachment.run_report.report
    assert (report.computed, report.skipped) == (6, 6)
    assert report.schedule.mask[:3] == (True,) * 3
    assert "general prior" in report.source
    assert "no preset was calibrated on this model (BaseModel)" in attachment.run_report.text
    assert "calibrate with the MagCache Calibration node" in attachment.run_report.text
    shown = nodes["MagPolicyPreview"]().preview(steps=12, model=patcher, model_type="auto", **(VALUES | more))
    assert "no preset was calibrated on this model (BaseModel)" in shown["result"][1]
    assert magpolicy.plan("flux", steps=12, speedup=2.0).strip.count("·") == shown["result"][1].partition(" computed")[0].count(
        "·"
    )


def defaults(node: type) -> dict[str, Any]:
    """What the editor puts into a new node."""
    inputs = node.INPUT_TYPES()  # type: ignore[attr-defined]
    every = {**inputs["required"], **inputs.get("optional", {})}
    return {name: about[1].get("default", about[0][0]) for name, about in every.items() if name != "model"}


@pytest.mark.parametrize(
    ("name", "config", "kind"),
    [
        ("WAN21_Vace", {"dim": 1536, "num_layers": 30}, "wan2.1_vace_1.3B"),
        ("Flux", FLUX, "flux"),
        ("HunyuanVideo15", {}, "hunyuan_video1.5"),
    ],
)
def test_a_new_node_goes_by_the_settings_of_the_preset(
    nodes: dict[str, Any], name: str, config: dict[str, Any], kind: str
) -> None:
    from magpolicy_comfyui._runs import attached

    patcher = figures(models.make(name), **config)
    expected = magpolicy.simulate(kind, steps=20)
    for model_type in ("auto", kind):
        (node,) = nodes["MagCache"]().apply(model=patcher, **defaults(nodes["MagCache"]) | {"model_type": model_type})
        running.sample(node, name, steps=20)
        running.same(attached(node).run_report.schedule, expected)
    (node,) = nodes["MagCache"]().apply(
        model=patcher, **defaults(nodes["MagCache"]) | {"model_type": kind, "magcache_thresh": 0.01}
    )
    running.sample(node, name, steps=20)
    running.same(attached(node).run_report.schedule, magpolicy.simulate(kind, steps=20, threshold=0.01))


def test_a_calibration_without_settings_goes_by_cautious_ones(nodes: dict[str, Any], folder: Path) -> None:
    from magpolicy_comfyui._runs import attached

    patcher = models.make("WAN21_T2V")
    (node,) = nodes["MagCacheCalibration"]().apply(model=patcher, model_type="auto", name="mine")
    running.sample(node, "WAN21_T2V", steps=12)
    (node,) = nodes["MagCache"]().apply(model=patcher, **defaults(nodes["MagCache"]) | {"model_type": "file: mine.json"})
    running.sample(node, "WAN21_T2V", steps=12)
    expected = magpolicy.simulate(folder / "mine.json", steps=12, threshold=0.06, max_skips=3, retention=0.2)
    running.same(attached(node).run_report.schedule, expected)


def test_settings_of_the_preset(nodes: dict[str, Any]) -> None:
    from magpolicy_comfyui._runs import attached

    patcher = models.make("WAN21_T2V")
    (node,) = nodes["MagCache"]().apply(
        model=patcher, model_type="wan2.1_t2v_1.3B", settings="the preset's", **(VALUES | {"magcache_K": 0})
    )
    running.sample(node, "WAN21_T2V", steps=20)
    ran = attached(node).run_report.schedule
    running.same(ran, magpolicy.simulate("wan2.1_t2v_1.3B", steps=20))
    assert ran.skipped > 0


@pytest.mark.parametrize("semantics", ["comfyui/flux", "official/flux", "diffusers"])
def test_semantics_of_others(nodes: dict[str, Any], semantics: str) -> None:
    from magpolicy_comfyui._runs import attached

    (node,) = nodes["MagCache"]().apply(model=models.make("Flux"), model_type="flux", semantics=semantics, **VALUES)
    running.sample(node, "Flux", steps=20)
    expected = magpolicy.simulate("flux", steps=20, threshold=0.24, max_skips=4, retention=0.2, semantics=semantics)
    running.same(attached(node).run_report.schedule, expected)


@pytest.mark.parametrize("forecast", ["auto", "hold"])
def test_a_planned_speedup(nodes: dict[str, Any], forecast: str) -> None:
    from magpolicy_comfyui._runs import attached

    values = {"speedup": 2.0, "forecast": forecast, **VALUES}
    (node,) = nodes["MagCache"]().apply(model=models.make("Flux"), model_type="flux", **values)
    running.sample(node, "Flux", steps=20)
    assert attached(node).run_report.schedule.computed <= 10


def test_calibration_writes_a_preset_that_model_type_offers(
    nodes: dict[str, Any], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from magpolicy_comfyui._runs import attached

    patcher = models.make("WAN21_T2V")
    plain = running.sample(patcher, "WAN21_T2V", steps=12, cfg=3.0)
    (node,) = nodes["MagCacheCalibration"]().apply(model=patcher, model_type="auto", name="mine: 12")
    assert torch.equal(running.sample(node, "WAN21_T2V", steps=12, cfg=3.0), plain)
    written = folder / "mine-12.json"
    assert written.exists()
    assert str(written) in attached(node).run_report.text
    kind = "file: mine-12.json"
    kinds, _ = nodes["MagCache"].INPUT_TYPES()["required"]["model_type"]
    assert kind in kinds
    assert nodes["MagCache"].IS_CHANGED(model_type=kind) == written.stat().st_mtime
    assert nodes["MagCache"].IS_CHANGED(model_type="flux") == 0
    found = magpolicy.load_calibration(written)
    assert set(found.streams) == {"cond", "uncond"}
    assert found.sigmas[0] == 1.0
    json.loads(written.read_text())
    values = {"magcache_thresh": 0.5, "retention_ratio": 0.2, "magcache_K": 3, "start_step": 0, "end_step": -1}
    for more in ({}, {"speedup": 2.0}, {"forecast": "calibrated"}):
        (used,) = nodes["MagCache"]().apply(model=patcher, model_type=kind, **values, **more)
        result = running.sample(used, "WAN21_T2V", steps=12, cfg=3.0)
        report = attached(used).run_report.report
        assert report.skipped > 0
        assert torch.isfinite(result).all()
        if "speedup" in more:
            ran = report.schedule
            assert all(map(any, ran.coefficients)), "the report states the plan's forecasts, and the errors expected of them"
            expected = magpolicy.expected_errors(found, ran)
            assert {name: pytest.approx(ran.stream_errors(name), abs=1e-9) for name in ran.streams} == expected


def test_a_second_order_sampler_calibrates(nodes: dict[str, Any], folder: Path) -> None:
    (node,) = nodes["MagCacheCalibration"]().apply(model=models.make("Flux"), model_type="flux", name="heun")
    running.sample(node, "Flux", steps=6, sampler="heun")
    from magpolicy_comfyui._runs import attached

    run_report = attached(node).run_report
    assert (folder / "heun.json").exists() or run_report.problem


def test_an_interrupted_calibration_writes_nothing(nodes: dict[str, Any], folder: Path) -> None:
    patcher = models.make("Flux")
    (node,) = nodes["MagCacheCalibration"]().apply(model=patcher, model_type="flux", name="half")
    calls = iter(range(100))

    def fail(*_: Any) -> None:
        if next(calls) == 3:
            raise RuntimeError("stop")

    hook = patcher.model.diffusion_model.single_blocks[0].register_forward_pre_hook(fail)
    try:
        with pytest.raises(RuntimeError, match="stop"):
            running.sample(node, "Flux", steps=8)
    finally:
        hook.remove()
    assert not (folder / "half.json").exists()


def test_preview(nodes: dict[str, Any]) -> None:
    preview = nodes["MagPolicyPreview"]()
    made = preview.preview(steps=20, model_type="flux", **VALUES)
    image, text = made["result"]
    expected = magpolicy.simulate("flux", steps=20, threshold=0.24, max_skips=4, retention=0.2)
    assert text.startswith(str(expected))
    assert made["ui"]["text"] == (text,)
    assert image.ndim == 4
    assert image.shape[0] == 1
    assert image.shape[3] == 3
    dark = (image[0, 30, 8:-8].sum(-1) < 1.5).float().mean()
    assert abs(float(dark) - expected.computed / 20) < 0.05
    with pytest.raises(magpolicy.ArgumentError, match="needs the model"):
        preview.preview(steps=20, model_type="auto", **VALUES)
    window = preview.preview(steps=20, model_type="flux", **(VALUES | {"start_step": 5, "end_step": -3}))
    expected = magpolicy.simulate("flux", steps=20, threshold=0.24, max_skips=4, retention=0.2, start_step=5, end_step=17)
    assert window["result"][1].startswith(str(expected))


def test_report(nodes: dict[str, Any]) -> None:
    patcher = models.make("Flux")
    report = nodes["MagPolicyReport"]()
    latent = models.latent("Flux")
    assert "no MagCache node" in report.report(latent, patcher)["result"][2]
    (node,) = nodes["MagCache"]().apply(model=patcher, model_type="flux", **VALUES)
    assert "no sampling" in report.report(latent, node)["result"][2]
    running.sample(node, "Flux", steps=20)
    made = report.report(latent, node.clone())  # by way of other nodes
    same, image, text = made["result"]
    assert same is latent
    assert magpolicy.simulate("flux", steps=20, threshold=0.24, max_skips=4, retention=0.2).strip in text
    assert "measured in the model" in text
    assert image.shape[0] == 1


def test_the_browser_and_the_log_are_told(
    nodes: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sent: list[tuple[str, Any]] = []
    server = SimpleNamespace(send_sync=lambda event, data: sent.append((event, data)))
    monkeypatch.setitem(sys.modules, "server", SimpleNamespace(PromptServer=SimpleNamespace(instance=server)))
    (node,) = nodes["MagCache"]().apply(model=models.make("Flux"), model_type="flux", unique_id="7", **VALUES)
    noise = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    import comfy.sample

    with caplog.at_level(logging.INFO, "magpolicy"):
        pos, neg = models.conditioning("Flux", 0), models.conditioning("Flux", 1)
        comfy.sample.sample(
            node, noise, 12, 1.0, "euler", "simple", pos, neg, torch.zeros_like(noise), disable_pbar=True, seed=1
        )
    (event, data), *others = [entry for entry in sent if entry[0] == "magpolicy.report"]
    assert not others
    assert event == "magpolicy.report"
    assert data["node"] == "7"
    assert data["strip"] in caplog.text
    json.dumps(data)


def test_a_handle_while_a_sampling_is_under_way(comfyui: Path) -> None:
    import comfy.sample

    patcher = models.make("Flux")
    noise = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    positive, negative = models.conditioning("Flux", 0), models.conditioning("Flux", 1)
    handle = magpolicy.attach(patcher, preset="flux", **running.RULE)
    held, steps = [], []

    def between(step: int, *_: Any) -> None:
        held.append(handle.residuals_held)
        steps.append(handle.report.schedule.steps)
        with pytest.raises(magpolicy.RunError, match="under way"):
            handle.detach()

    with running.quiet():
        comfy.sample.sample(
            patcher, noise, 12, 3.0, "euler", "simple", positive, negative, torch.zeros_like(noise), callback=between, seed=1
        )
    assert max(held) == 2  # one for each condition
    assert steps == list(range(1, 13))
    assert handle.residuals_held == 0
    handle.detach()
    handle.detach()
    assert not patcher.get_all_wrappers("outer_sample")


@pytest.mark.parametrize("settings", [{}, {"rule": "published"}, {"calibrate": True}], ids=str)
def test_a_patcher_of_a_text_encoder_is_refused(comfyui: Path, settings: dict[str, Any]) -> None:
    from comfy.model_patcher import ModelPatcher

    cpu = torch.device("cpu")
    patcher = ModelPatcher(torch.nn.Linear(2, 2), cpu, cpu)
    for ask in (partial(magpolicy.attach, patcher, **settings), partial(magpolicy.compile, patcher)):
        with pytest.raises(magpolicy.AdapterError, match=r"^target=ModelPatcher of Linear is no denoiser"):
            ask()
    assert magpolicy.attached(patcher) == ()


def test_attaching_again_and_without_the_handle(comfyui: Path) -> None:
    patcher = models.make("Flux")
    plain = running.sample(patcher, "Flux", steps=12)
    first = magpolicy.attach(patcher, preset="flux", **running.RULE)
    running.sample(patcher, "Flux", steps=12)
    clone = patcher.clone()
    second = magpolicy.attach(patcher, preset="flux", threshold=0.0, max_skips=0, retention=0.0)
    assert magpolicy.attached(patcher) == (second,)
    with pytest.raises(magpolicy.ArgumentError, match="steps=12"):
        magpolicy.attach(patcher, preset="flux", steps=12)
    first.detach()
    assert torch.equal(running.sample(patcher, "Flux", steps=12), plain)
    assert (first.report.skipped > 0, second.report.skipped) == (True, 0)

    def inside(*_: object) -> None:
        for do in (lambda: magpolicy.attach(patcher, preset="flux"), lambda: magpolicy.detach(patcher)):
            with pytest.raises(magpolicy.RunError, match="under way"):
                do()
        met.append(True)

    met: list[bool] = []
    hook = patcher.model.diffusion_model.register_forward_pre_hook(inside)
    running.sample(patcher, "Flux", steps=12)
    hook.remove()
    assert met
    assert magpolicy.detach(patcher) == 1
    assert magpolicy.detach(patcher) == 0
    assert not patcher.get_all_wrappers("outer_sample")
    (of_clone,) = magpolicy.attached(clone)
    assert of_clone.report.skipped == first.report.skipped, "a clone has what was on the patcher"
    assert magpolicy.detach(clone) == 1
    assert not clone.get_all_wrappers("outer_sample")


def test_settings_of_one_sampling(comfyui: Path) -> None:
    patcher = models.make("Flux")
    with magpolicy.attach(patcher, speedup=2.0, learn=False) as handle:
        with handle.settings(speedup=4.0):
            running.sample(patcher, "Flux", steps=12)
            assert handle.report.computed == 3
        running.sample(patcher, "Flux", steps=12)
        assert handle.report.computed == 6


def test_attach(comfyui: Path) -> None:
    patcher = models.make("Flux")
    plain = running.sample(patcher, "Flux", steps=12)
    with magpolicy.attach(patcher, preset="flux", **running.RULE) as handle:
        with pytest.raises(magpolicy.RunError, match="no run yet; run a sampler"):
            _ = handle.report
        running.sample(patcher, "Flux", steps=12)
        running.same(handle.report.schedule, magpolicy.simulate("flux", steps=12, **running.RULE))
        assert [report.schedule for report in handle.reports] == [handle.report.schedule]
        assert (handle.scope, handle.residuals_held) == ("stack", 0)
        assert handle.module is patcher.model.diffusion_model
        with pytest.raises(magpolicy.RunError, match="does not calibrate"):
            _ = handle.curve
    assert torch.equal(running.sample(patcher, "Flux", steps=12), plain)
    with pytest.raises(magpolicy.ArgumentError, match="steps=12"):
        magpolicy.attach(patcher, preset="flux", steps=12)
    with magpolicy.attach(patcher, calibrate=True) as handle:
        running.sample(patcher, "Flux", steps=12)
        assert handle.curve.steps == 12
        assert handle.calibration.steps == 12
    figures(patcher, **FLUX)
    with magpolicy.attach(patcher, **running.RULE) as handle:
        running.sample(patcher, "Flux", steps=12)
        assert handle.report.skipped > 0
