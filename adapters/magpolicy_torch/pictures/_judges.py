"""What judges a picture by itself, or by its prompt: CLIP score, ImageReward and VBench, each where it is installed.

A judge is made once and asked for each folder; making it raises :class:`Unavailable`, which says in words what is missing.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import statistics
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from magpolicy.adapter import require
from magpolicy_torch.pictures._files import frames_of

Files = Mapping[str, Path]
"""Pictures or videos, by file name."""
Prompts = Mapping[str, str]
"""What each file shows, by file name or by file name without its ending."""

_FRAMES = 8  # frames of a video that are judged
_VBENCH = (
    "subject_consistency", "background_consistency", "motion_smoothness", "dynamic_degree", "aesthetic_quality",
    "imaging_quality",
)  # fmt: skip
"""The dimensions that VBench computes for videos of any prompts."""
_READ_BY_VBENCH = (".mp4", ".gif")


class Unavailable(Exception):
    """A judge cannot be had; the message says why."""


class ClipScore:
    """100 times the cosine of the embeddings of picture and prompt (torchmetrics), of a video its mean over frames."""

    def __init__(self, prompts: Prompts, device: str, model: str) -> None:
        self._prompts = _needed(prompts)
        self._device = device
        self._score = require("torchmetrics.functional.multimodal", "evaluate").clip_score
        transformers = _imported("transformers", "pip install transformers")
        try:
            self._clip = _Features(transformers.CLIPModel.from_pretrained(model).eval())
            self._processor = transformers.CLIPProcessor.from_pretrained(model)
        except Exception as error:  # whatever a hub or a file may say
            raise Unavailable(f"CLIP model {model} cannot be loaded: {type(error).__name__}: {error}") from error

    def __call__(self, files: Files) -> dict[str, float]:
        """The mean over files."""
        return {"clip_score": statistics.fmean(self._of(path, _prompt_of(name, self._prompts)) for name, path in files.items())}

    def _of(self, path: Path, prompt: str) -> float:
        frames = [torch.from_numpy(frame).permute(2, 0, 1).to(self._device) for frame in _some_frames(path)]
        with torch.inference_mode():
            return float(self._score(frames, [prompt] * len(frames), lambda: (self._clip, self._processor)))


class _Features:
    """A CLIP model whose features are tensors, as torchmetrics expects: since transformers 5 they are part of an output."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.config = model.config

    def to(self, device: Any) -> _Features:
        self._model.to(device)
        return self

    def get_image_features(self, *args: Any) -> Any:
        found = self._model.get_image_features(*args)
        return getattr(found, "pooler_output", found)

    def get_text_features(self, *args: Any) -> Any:
        found = self._model.get_text_features(*args)
        return getattr(found, "pooler_output", found)


class ImageReward:
    """What ImageReward-v1.0 gives a picture for its prompt, of a video its mean over frames."""

    def __init__(self, prompts: Prompts, device: str) -> None:
        self._prompts = _needed(prompts)
        package = _imported("ImageReward", "pip install image-reward")
        self._image = _imported("PIL.Image", "pip install 'magpolicy[evaluate]'")
        try:
            self._model = package.load("ImageReward-v1.0", device=device)
        except Exception as error:
            raise Unavailable(f"its model cannot be loaded: {type(error).__name__}: {error}") from error

    def __call__(self, files: Files) -> dict[str, float]:
        """The mean over files."""
        return {
            "image_reward": statistics.fmean(self._of(path, _prompt_of(name, self._prompts)) for name, path in files.items())
        }

    def _of(self, path: Path, prompt: str) -> float:
        with torch.inference_mode():
            return statistics.fmean(self._model.score(prompt, self._image.fromarray(frame)) for frame in _some_frames(path))


class VBench:
    """The dimensions of VBench that it computes for videos of any prompts."""

    def __init__(self, device: str) -> None:
        self._package = _imported("vbench", "pip install vbench")
        self._device = torch.device(device)

    def __call__(self, files: Files) -> dict[str, float]:
        """Each dimension's figure for the videos together."""
        videos = str(next(iter(files.values())).parent)
        with tempfile.TemporaryDirectory(prefix="magpolicy-vbench-") as folder:
            bench = self._package.VBench(self._device, "", folder)
            bench.evaluate(videos_path=videos, name="videos", dimension_list=list(_VBENCH), mode="custom_input")
            told = json.loads((Path(folder) / "videos_eval_results.json").read_text(encoding="utf-8"))
        return {f"vbench_{name}": float(found[0]) for name, found in told.items()}


def judges(prompts: Prompts, files: Files, *, device: str, clip: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The judges that can be had for these files, by name; and why the others cannot, in words."""
    kinds: dict[str, Any] = {
        "clip_score": lambda: ClipScore(prompts, device, clip),
        "image_reward": lambda: ImageReward(prompts, device),
    }
    if all(path.suffix.lower() in _READ_BY_VBENCH for path in files.values()):
        kinds["vbench"] = lambda: VBench(device)
    found, missing = {}, {}
    for name, make in kinds.items():
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # what they print is no part of a table or of JSON
                found[name] = make()
        except Unavailable as why:
            missing[name] = str(why)
    return found, missing


def _needed(prompts: Prompts) -> Prompts:
    if not prompts:
        raise Unavailable("it needs the prompts; pass --prompts prompts.json")
    return prompts


def _prompt_of(name: str, prompts: Prompts) -> str:
    return prompts[name] if name in prompts else prompts[Path(name).stem]


def _imported(module: str, mend: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Unavailable(f"{module.split('.')[0]} is not installed; {mend}") from error


def _some_frames(path: Path) -> Iterable[Any]:
    """The picture, or some frames of the video, evenly spaced."""
    frames = list(frames_of(path))
    return frames[:: max(1, len(frames) // _FRAMES)][:_FRAMES]
