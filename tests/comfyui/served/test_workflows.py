"""The example workflows: what is in the files, and what a real server makes of them."""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from host import Server
from listening import reports, run

import magpolicy

EXAMPLES = Path(__file__).parents[3] / "examples" / "comfyui"
sys.path.append(str(EXAMPLES))
import workflows  # noqa: E402
import write_workflows  # noqa: E402

pytestmark = pytest.mark.sampled

NAMES = sorted(path.name.removesuffix(".api.json") for path in EXAMPLES.glob("*.api.json"))
# Of which class the model is that a workflow loads.
KINDS = {
    "flux": "Flux", "flux_speed_up": "Flux", "flux_kontext": "Flux", "flux_kontext_calibration": "Flux", "chroma": "Chroma",
    "chroma_calibration": "Chroma", "qwen_image": "QwenImage", "hunyuanvideo": "HunyuanVideo",
    "hunyuanvideo_1.5": "HunyuanVideo15", "wan2.1_t2v": "WAN21_T2V", "wan2.1_t2v_speed_up": "WAN21_T2V",
    "wan2.1_i2v": "WAN21_I2V", "wan2.1_vace": "WAN21_Vace",
    "wan2.2_t2v": "WAN21_T2V", "wan2.2_i2v": "WAN21_I2V", "wan2.2_ti2v": "WAN22_T2V",
}  # fmt: skip


def api(name: str) -> dict[str, Any]:
    return json.loads((EXAMPLES / f"{name}.api.json").read_text(encoding="utf-8"))


def here(server: Server, name: str) -> bool:
    known = server.get("object_info")
    return all(node["class_type"] in known for node in api(name).values())


def test_there_is_one_for_each_model_of_the_origin() -> None:
    assert set(NAMES) == set(KINDS)
    assert len(NAMES) == len(workflows.WORKFLOWS)


def test_the_files_are_what_the_description_gives(server: Server, version: str) -> None:
    made = dict(write_workflows.files(server.get("object_info")))
    if version == "0.3.75":  # the files' own; others have a few inputs more or fewer here and there
        assert len(made) == 2 * len(NAMES)
        assert {path.name: path.read_text(encoding="utf-8") for path in made} == {
            path.name: text for path, text in made.items()
        }
    elif version == "0.3.52":
        assert len(made) == 2 * (len(NAMES) - 1)  # HunyuanVideo 1.5 came later
        assert all(path.read_text(encoding="utf-8") == text for path, text in made.items() if path.name.endswith(".api.json"))
    else:
        pytest.skip(f"the files are written for 0.3.75; {version} gives nodes that are not ours other inputs")


@pytest.mark.parametrize("name", KINDS)
def test_the_settings_are_the_presets(name: str) -> None:
    for node in api(name).values():
        if node["class_type"] == "MagCache":
            inputs = node["inputs"]
            preset = magpolicy.preset(inputs["model_type"])
            chosen = inputs["magcache_thresh"], inputs["retention_ratio"], inputs["magcache_K"]
            assert chosen == (preset.threshold, preset.retention, preset.max_skips)


@pytest.mark.parametrize("name", KINDS)
def test_the_server_accepts_it(server: Server, name: str) -> None:
    if not here(server, name):
        pytest.skip("this ComfyUI does not have the model")
    prompt = api(name)
    for node in prompt.values():
        for key, value in node["inputs"].items():
            if isinstance(value, str) and (folder := _FOLDERS.get((node["class_type"], key))):
                (server.base / folder).mkdir(parents=True, exist_ok=True)
                (server.base / folder / value).touch()
    answer = server.post("prompt", {"prompt": prompt})
    assert "prompt_id" in answer, answer
    assert answer["node_errors"] == {}
    _clear(server)


_FOLDERS = {
    ("UNETLoader", "unet_name"): "models/diffusion_models",
    ("CLIPLoader", "clip_name"): "models/text_encoders",
    ("DualCLIPLoader", "clip_name1"): "models/text_encoders",
    ("DualCLIPLoader", "clip_name2"): "models/text_encoders",
    ("VAELoader", "vae_name"): "models/vae",
    ("CLIPVisionLoader", "clip_name"): "models/clip_vision",
    ("LoadImage", "image"): "input",
}


def _clear(server: Server) -> None:
    """Forget what is queued: the models are empty files."""
    for path, body in (("queue", {"clear": True}), ("interrupt", {})):
        request = urllib.request.Request(
            f"{server.url}/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        urllib.request.urlopen(request, timeout=30).close()


def tiny(name: str) -> dict[str, Any]:
    """The workflow with a tiny model of the same class, and prompts, latents and a picture that fit it."""
    kind = KINDS[name]
    prompt = api(name)
    made: dict[str, Any] = {}
    for key, node in prompt.items():
        inputs, what = node["inputs"], node["class_type"]
        if what == "UNETLoader":
            made[key] = {"class_type": "TinyModel", "inputs": {"kind": kind}}
        elif what == "CLIPTextEncode":
            made[key] = {"class_type": "TinyPrompt", "inputs": {"kind": kind, "seed": int(key)}}
        elif what in ("VAEEncode", "Wan22ImageToVideoLatent") or what.startswith("Empty"):
            made[key] = {"class_type": "TinyLatent", "inputs": {"kind": kind}}
        elif what in ("WanImageToVideo", "WanVaceToVideo"):
            made[key] = {
                "class_type": "TinyStart",
                "inputs": {"kind": kind, **{k: inputs[k] for k in ("positive", "negative")}},
            }
        elif what == "VAEDecode":
            made[key] = {"class_type": "TinyDecode", "inputs": {"samples": inputs["samples"]}}
        elif what == "CreateVideo":
            made[key] = {"class_type": "SaveImage", "inputs": {"images": inputs["images"], "filename_prefix": "film"}}
        elif what == "MagPolicySpeedUp":
            made[key] = {"class_type": what, "inputs": inputs | {"learn": "off"}}  # what is learned changes the next plan
        elif what not in _LOADERS:
            made[key] = {"class_type": what, "inputs": dict(inputs)}
    return made


_LOADERS = (
    "CLIPLoader", "DualCLIPLoader", "VAELoader", "CLIPVisionLoader", "CLIPVisionEncode", "LoadImage", "FluxKontextImageScale",
    "T5TokenizerOptions", "SaveVideo",
)  # fmt: skip


@pytest.mark.parametrize("name", [name for name in KINDS if "calibration" not in name])
def test_it_runs_and_skips_what_the_panel_said(server: Server, name: str) -> None:
    if not here(server, name):
        pytest.skip("this ComfyUI does not have the model")
    prompt = tiny(name)
    entry, heard = run(server, prompt)
    assert entry["status"]["status_str"] == "success", entry["status"]
    images = [image for output in entry["outputs"].values() for image in output.get("images", [])]
    assert images
    assert all((server.base / "output" / image["filename"]).stat().st_size > 100 for image in images)
    said = reports(heard)
    caches = {key: node for key, node in prompt.items() if node["class_type"] in ("MagCache", "MagPolicySpeedUp")}
    assert set(said) == set(caches)
    for key, node in caches.items():
        question = {"node": node["class_type"], "inputs": node["inputs"], "sampler": sampler_of(prompt, key)}
        question["seen"] = said[key]["model"]  # a model that no preset names is known once it was sampled
        answer = server.post("magpolicy/simulate", question)
        assert said[key]["schedule"]["mask"] == answer["schedule"]["mask"]
        assert said[key]["skipped"] > 0
        assert f"magpolicy: {said[key]['text'].splitlines()[0]}" in server.log


def sampler_of(prompt: dict[str, Any], cache: str) -> dict[str, Any]:
    """What the panel finds behind a node."""
    reached, frontier = {cache}, [cache]
    while frontier:
        at = frontier.pop()
        for key, node in prompt.items():
            if key not in reached and any(value == [at, 0] for value in node["inputs"].values()):
                reached.add(key)
                frontier.append(key)
    kinds = ("KSampler", "KSamplerAdvanced", "BasicScheduler")
    found: dict[str, Any] = {}
    for key in sorted(reached, key=int):
        node = prompt[key]
        if node["class_type"] in kinds and node["inputs"]["model"][0] in reached and "steps" not in found:
            found |= {k: v for k, v in node["inputs"].items() if not isinstance(v, list)}
            found["custom"] = node["class_type"] == "BasicScheduler"
        if "shift" in node["inputs"] and "steps" not in found:
            found["shift"] = node["inputs"]["shift"]
    if found["custom"]:
        found |= next(node["inputs"] for node in prompt.values() if node["class_type"] == "KSamplerSelect")
    return found


@pytest.mark.parametrize("name", ["chroma_calibration", "flux_kontext_calibration"])
def test_calibration_writes_a_preset_that_the_node_then_offers(server: Server, name: str) -> None:
    prompt = tiny(name)
    calibration = next(node for node in prompt.values() if node["class_type"] == "MagCacheCalibration")
    calibration["inputs"]["name"] = f"measured {name}"
    entry, heard = run(server, prompt)
    assert entry["status"]["status_str"] == "success", entry["status"]
    (report,) = reports(heard).values()
    assert report["skipped"] == 0
    kind, about = server.get("object_info/MagCache")["MagCache"]["input"]["required"]["model_type"]
    choices = about["options"] if kind == "COMBO" else kind  # of ComfyUI's schema, or of the older form
    chosen = f"file: measured-{name}.json"
    assert chosen in choices
    inputs = {"model_type": chosen, "magcache_thresh": 0.1, "retention_ratio": 0.2, "magcache_K": 3}
    answer = server.post("magpolicy/simulate", {"inputs": inputs})
    assert answer["preset"] == f"measured {name}"
