"""Two folders compared: one of full runs, one of runs that skipped."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from attrs import field, frozen

from magpolicy import ArgumentError
from magpolicy_torch.device._accelerator import default
from magpolicy_torch.pictures._files import frames_of, pairs
from magpolicy_torch.pictures._judges import judges
from magpolicy_torch.pictures._similarity import Similarity, SimilarityMeter

CLIP = "openai/clip-vit-base-patch16"


@frozen
class Evaluation:
    """What the comparison of two folders gave."""

    files: Mapping[str, Similarity]
    """How near each file comes to its partner, by file name."""
    judged: Mapping[str, tuple[float, float]]
    """What judges say of the full runs and of the others, by metric."""
    missing: Mapping[str, str] = field(factory=dict)
    """Metrics without a figure, and why, in words."""

    @property
    def mean(self) -> Similarity:
        """The mean over files."""
        return Similarity.mean(self.files.values())


def evaluate(
    full: Path,
    cached: Path,
    *,
    prompts: Mapping[str, str] | None = None,
    device: str | None = None,
    clip: str = CLIP,
    on_file: Callable[[int, int, str], None] = lambda place, count, name: None,
) -> Evaluation:
    """Compare the pictures or videos of two folders, matched by file name.

    Args:
        full: folder of the full runs; ``cached`` that of the runs that skipped.
        prompts: what each file shows, by file name, with or without its ending; CLIP score and ImageReward need them.
        device: a torch device; by default the accelerator where there is one.
        clip: repo id or folder of the CLIP model.
        on_file: told before each file: its number from 1, how many there are, its name.

    Raises:
        ArgumentError: a folder is missing or empty, files do not match or differ in size or length, or a prompt is missing.
        MissingExtraError: torchmetrics or imageio is not installed.
    """
    matched = pairs(full, cached)
    prompts = _checked(prompts or {}, [name for name, _, _ in matched])
    meter = SimilarityMeter(device)
    files = {}
    for place, (name, first, second) in enumerate(matched):
        on_file(place + 1, len(matched), name)
        files[name] = meter.compare(frames_of(first), frames_of(second), str(second))
    one, other = ({name: pair[which] for name, *pair in matched} for which in (0, 1))
    found, missing = judges(prompts, one, device=device or default(), clip=clip)
    judged = {}
    for name, judge in found.items():
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                before, after = judge(one), judge(other)
            judged.update({key: (before[key], after[key]) for key in before})
        except Exception as error:  # a judge's fault leaves the other figures as they are
            missing[name] = f"it failed: {type(error).__name__}: {error}"
    return Evaluation(files, judged, meter.missing | missing)


def _checked(prompts: Mapping[str, Any], names: list[str]) -> Mapping[str, str]:
    without = [name for name in names if name not in prompts and Path(name).stem not in prompts]
    if prompts and without:
        raise ArgumentError(f"prompts has none for {', '.join(without[:3])}; it maps each file name to its prompt")
    return prompts
