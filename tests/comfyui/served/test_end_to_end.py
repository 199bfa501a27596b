"""From a model's file to a picture and a report, over the HTTP API of a running ComfyUI."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
from host import Server
from listening import reports, run
from PIL import Image

import magpolicy

FILE = "tiny-wan.safetensors"


@pytest.fixture(scope="module")
def file(server: Server) -> str:
    """A small model in ComfyUI's format for diffusion models, written by ComfyUI itself."""
    save = {"1": _node("TinyLoadable"), "2": _node("ModelSave", model=["1", 0], filename_prefix="tiny")}
    entry = server.run(save)
    assert entry["status"]["status_str"] == "success", server.log[-3000:]
    written = next((server.base / "output").glob("tiny*.safetensors"))
    target = server.base / "models" / "diffusion_models" / FILE
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(written, target)
    return FILE


def _node(class_type: str, /, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def sampling(file: str, *, seed: int = 5, steps: int = 16, cache: bool = True, **settings: Any) -> dict[str, Any]:
    chosen = {
        "model_type": "wan2.1_t2v_1.3B", "magcache_thresh": 0.12, "retention_ratio": 0.2, "magcache_K": 4, "start_step": 0,
        "end_step": -1,
    } | settings  # fmt: skip
    sides = [_node("TinyPrompt", kind="WAN21_T2V", seed=seed, width=4096) for seed in (1, 2)]
    return {
        "1": _node("UNETLoader", unet_name=file, weight_dtype="default"),
        "2": _node("MagCache", model=["1", 0], **chosen),
        "3": sides[0],
        "4": sides[1],
        "5": _node("TinyLatent", kind="WAN21_T2V"),
        "6": _node(
            "KSampler", model=["2" if cache else "1", 0], positive=["3", 0], negative=["4", 0], latent_image=["5", 0],
            seed=seed, steps=steps, cfg=4.0, sampler_name="euler", scheduler="simple", denoise=1.0,
        ),
        "7": _node("TinyDecode", samples=["6", 0]),
        "8": _node("SaveImage", images=["7", 0], filename_prefix="end-to-end"),
    } | ({"9": _node("MagPolicyReport", latent=["6", 0], model=["2", 0])} if cache else {})  # fmt: skip


def picture(server: Server, entry: dict[str, Any]) -> Image.Image:
    assert entry["status"]["status_str"] == "success", server.log[-3000:]
    (image,) = entry["outputs"]["8"]["images"]
    with Image.open(server.base / "output" / image["filename"]) as found:
        return Image.frombytes("RGB", found.size, found.tobytes())  # without the workflow that is written into the file


def test_a_picture_comes_back_and_the_report_says_what_was_skipped(server: Server, file: str) -> None:
    entry, heard = run(server, sampling(file))
    schedule = magpolicy.simulate("wan2.1_t2v_1.3B", steps=16, threshold=0.12, retention=0.2, max_skips=4)
    assert picture(server, entry).size == (64, 64)
    report = reports(heard)["2"]
    assert report["strip"] == schedule.strip
    assert report["skipped"] == schedule.skipped > 0
    assert report["measured_speedup"] > 0
    assert magpolicy.Schedule.from_dict(report["schedule"]).masks == schedule.masks
    assert schedule.strip in entry["outputs"]["9"]["text"][0]
    assert schedule.strip in server.log


def test_without_skips_the_picture_is_the_one_without_the_node(server: Server, file: str) -> None:
    plain = picture(server, server.run(sampling(file, seed=6, cache=False)))
    entry, heard = run(server, sampling(file, seed=6, magcache_K=0))
    assert reports(heard)["2"]["skipped"] == 0
    assert picture(server, entry) == plain
    skipping, heard = run(server, sampling(file, seed=6))
    assert reports(heard)["2"]["skipped"] > 0
    assert picture(server, skipping) != plain


def test_another_prompt_right_after_decides_afresh(server: Server, file: str) -> None:
    first, second = (reports(run(server, sampling(file, seed=seed))[1])["2"]["strip"] for seed in (11, 12))
    assert first == second
    other = reports(run(server, sampling(file, seed=12, steps=7))[1])["2"]
    assert len(other["strip"]) == 7
    again = picture(server, server.run(sampling(file, seed=13)))
    server.run(sampling(file, seed=14, steps=5))
    assert again == picture(server, server.run(sampling(file, seed=13)))


def test_a_mistake_stops_the_prompt_before_anything_is_sampled(server: Server, file: str) -> None:
    answer = server.post("prompt", {"prompt": sampling(file, magcache_thresh=-2)})
    assert "prompt_id" not in answer
    answer = server.post("prompt", {"prompt": sampling(file, model_type="nothing")})
    assert "prompt_id" not in answer


def test_a_model_without_a_preset_is_planned_by_auto(unlearned: Server, file: str) -> None:
    entry, heard = run(unlearned, sampling(file, model_type="auto", seed=15))  # no preset was made for so small a Wan
    assert entry["status"]["status_str"] == "success"
    report = reports(heard)["2"]
    assert report["skipped"] > 0
    assert any("no preset was calibrated on this model" in note for note in report["notes"])


def test_a_posted_prompt_says_the_speed_alone(server: Server, file: str) -> None:
    prompt = sampling(file, steps=8)
    prompt["2"] = _node("MagPolicySpeedUp", model=["1", 0], speedup="balanced")
    rule = {"model_type": "flux", "magcache_thresh": 0.1, "retention_ratio": 0.1, "magcache_K": 2}
    prompt["10"] = _node("MagPolicyPreview", **rule)
    entry, heard = run(server, prompt)
    picture(server, entry)
    assert reports(heard)["2"]["skipped"] == 4
    assert entry["outputs"]["10"]["text"][0].startswith("20 steps")
