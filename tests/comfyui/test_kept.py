"""Calibrations that were kept serve ``auto``: those of the calibration node, and those of ``magpolicy.keep``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from host import models, running

import magpolicy
import torch

pytest.importorskip("cattrs", reason="the files extra is not installed")
pytestmark = pytest.mark.usefixtures("home")

WAN = {"dim": 5120, "num_layers": 40}
AUTO = {"model_type": "auto", "magcache_thresh": 0.24, "retention_ratio": 0.2, "magcache_K": 4, "start_step": 0, "end_step": -1}


def wan(shift: float = 0.0) -> Any:
    """The tiny model, with the config of Wan 14B; ``shift`` makes another one of it, such as the second expert."""
    patcher = models.make("WAN21_T2V")
    patcher.model.model_config.unet_config.update(WAN)
    with torch.no_grad():
        for parameter in patcher.model.diffusion_model.parameters():
            parameter.add_(shift)
    return patcher


def calibrated(nodes: dict[str, Any], patcher: Any, **run: Any) -> None:
    (node,) = nodes["MagCacheCalibration"]().apply(model=patcher, model_type="auto")
    running.sample(node, "WAN21_T2V", cfg=3.0, **{"steps": 12} | run)


def served(nodes: dict[str, Any], patcher: Any, **run: Any) -> tuple[str, int]:
    """What ``auto`` planned a sampling from, and how many evaluations it skipped."""
    from magpolicy_comfyui._runs import attached

    (node,) = nodes["MagCache"]().apply(model=patcher, **AUTO, speedup=2.0)
    running.sample(node, "WAN21_T2V", cfg=3.0, **{"steps": 12} | run)
    attachment = attached(node)
    assert attachment is not None
    assert attachment.run_report is not None
    return attachment.run_report.source, attachment.run_report.report.skipped


def test_what_a_handle_measured_serves_auto_with_no_more_words(nodes: dict[str, Any], folder: Path) -> None:
    patcher = wan()
    assert served(nodes, patcher)[0] == "wan2.1-t2v-14b"
    with magpolicy.attach(patcher, calibrate=True) as handle:
        running.sample(patcher, "WAN21_T2V", steps=12, cfg=3.0)
        found = handle.calibration
    assert found.provenance["identity"]["model"] == "WAN21"
    magpolicy.keep(found)
    assert served(nodes, wan())[0] == found.name  # loaded anew: the same weights
    with magpolicy.attach(wan(), speedup=2.0) as handle:
        running.sample(handle.patcher, "WAN21_T2V", steps=12, cfg=3.0)
        assert handle.report.source == f"a plan from calibration {found.name!r}"


def test_what_the_node_measured_serves_auto_also_after_a_restart(nodes: dict[str, Any], folder: Path) -> None:
    from magpolicy.catalog import _folder

    calibrated(nodes, wan())
    (file,) = folder.iterdir()
    _folder._read.cache_clear()  # what a process knows of files
    source, skipped = served(nodes, wan())
    assert (source, skipped) == (magpolicy.preset(file).name, 6)
    other = wan()
    other.model.model_config.unet_config["num_layers"] = 30
    other.model.model_config.unet_config["dim"] = 1536
    assert served(nodes, other)[0] == "wan2.1-t2v-1.3b"


def test_two_experts_and_two_stages_have_a_file_each_and_each_finds_its_own(nodes: dict[str, Any], folder: Path) -> None:
    high, low = wan(), wan(0.01)
    first = {"start_step": 0, "last_step": 6, "force_full_denoise": False}
    second = {"start_step": 6, "last_step": 12, "disable_noise": True}
    calibrated(nodes, high, **first)
    calibrated(nodes, low, **second)
    assert len(list(folder.iterdir())) == 2
    sources = {}
    for name, expert, part in (("high", high, first), ("low", low, second)):
        sources[name], skipped = served(nodes, expert, **part)
        assert skipped == 3  # of six: the speedup asked for, though the calibration knows this part of the levels alone
    assert sources["high"] != sources["low"]
    calibrated(nodes, high, **second)  # the same model in a second stage
    assert len(list(folder.iterdir())) == 3
    assert served(nodes, high, **first)[0] == sources["high"]
    assert served(nodes, high, **second)[0] not in sources.values()
    calibrated(nodes, high, **second)  # again: it replaces its own
    assert len(list(folder.iterdir())) == 3


def test_names_that_become_one_files_name_have_a_file_each(nodes: dict[str, Any], folder: Path) -> None:
    patcher = wan()
    for name in ("a b", "a-b", "a/b"):
        (node,) = nodes["MagCacheCalibration"]().apply(model=patcher, model_type="wan2.1_t2v_14B", name=name)
        running.sample(node, "WAN21_T2V", steps=4)
    assert len(list(folder.iterdir())) == 3
    (node,) = nodes["MagCacheCalibration"]().apply(model=patcher, model_type="wan2.1_t2v_14B")
    running.sample(node, "WAN21_T2V", steps=4)
    (named,) = [file.name for file in folder.iterdir() if not file.name.startswith("a-b")]
    assert named.startswith("wan2.1_t2v_14B-")


def test_a_calibration_of_another_model_is_refused(nodes: dict[str, Any], folder: Path) -> None:
    from magpolicy_comfyui._runs import attached

    calibrated(nodes, wan())
    (file,) = folder.iterdir()
    flux = models.make("Flux")
    with pytest.raises(magpolicy.ArgumentError, match="measured on a WAN21, target is a Flux"):
        magpolicy.attach(flux, calibration=file, speedup=2.0)
    assert attached(flux) is None
    plain = running.sample(flux, "Flux", steps=4)
    (node,) = nodes["MagCache"]().apply(model=flux, **AUTO | {"model_type": f"file: {file.name}"}, speedup=2.0)
    assert torch.equal(running.sample(node, "Flux", steps=4), plain)


def test_the_report_says_that_a_run_has_another_guidance_than_its_calibration(nodes: dict[str, Any], folder: Path) -> None:
    from magpolicy_comfyui._runs import attached

    calibrated(nodes, wan())
    (file,) = folder.iterdir()
    assert magpolicy.load_calibration(file).provenance["guidance"] == 3.0
    said = {}
    for cfg in (3.0, 5.0):
        (node,) = nodes["MagCache"]().apply(model=wan(), **AUTO, speedup=2.0)
        running.sample(node, "WAN21_T2V", steps=12, cfg=cfg)
        attachment = attached(node)
        assert attachment is not None
        assert attachment.run_report is not None
        said[cfg] = attachment.run_report.text
    assert "guidance" not in said[3.0]
    assert "the calibration is of guidance 3, this run has 5" in said[5.0].splitlines()


# What the report says of the choice


WHOLE = {"steps": 12, "cfg": 3.0}


def reported(nodes: dict[str, Any], name: str, patcher: Any, inputs: dict[str, Any], **run: Any) -> tuple[str, tuple[str, ...]]:
    """What decided a sampling with a node, and what else its report says, which is in its text too."""
    from magpolicy_comfyui._runs import attached

    (node,) = nodes[name]().apply(model=patcher, **inputs)
    running.sample(node, "WAN21_T2V", **WHOLE | run)
    found = attached(node).run_report  # type: ignore[union-attr]
    assert found is not None
    assert all(problem in found.text for problem in found.report.problems)
    return found.report.source, found.report.problems


SPEED_UP = {"speedup": "balanced", "learn": "off"}


@pytest.mark.parametrize("place", ["the node's", "magpolicy's"])
def test_the_report_says_of_a_calibration_why_it_is_not_used_and_what_uses_it(
    nodes: dict[str, Any], folder: Path, place: str
) -> None:
    calibrated(nodes, wan())
    (file,) = folder.iterdir()
    name, choice = magpolicy.preset(file).name, f"file: {file.name}"
    if place == "magpolicy's":
        magpolicy.keep(magpolicy.load_calibration(file))
        file.unlink()
        choice = name
    source, said = reported(nodes, "MagPolicySpeedUp", wan(), SPEED_UP)
    assert (source, said) == (f"a plan from calibration {name!r}", ())
    _, said = reported(nodes, "MagPolicySpeedUp", wan(0.01), SPEED_UP)
    assert said == (f"the calibration {name!r} was measured with other weights of the same class and config",)
    source, said = reported(nodes, "MagCache", wan(), AUTO)  # by the rule
    assert "wan2.1-t2v-14b" in source
    assert said == (f"your calibration {name!r} is of this model, and not used: the rule goes by published settings; "
                    "speedup=2 plans from it",)  # fmt: skip
    other = wan()
    other.model.model_config.unet_config |= {"dim": 1536, "num_layers": 30}
    for node, inputs in (("MagPolicySpeedUp", SPEED_UP), ("MagCache", AUTO)):
        _, said = reported(nodes, node, other, inputs)
        uses = f"MagCache with model_type {choice!r} uses it all the same"
        assert said == (f"your calibration {name!r} is of another WAN21, and passed over; {uses}",)
    source, _ = reported(nodes, "MagCache", other, AUTO | {"model_type": choice, "speedup": 2.0})
    assert source == f"a plan from calibration {name!r}"


def test_the_report_says_of_a_calibration_that_it_is_of_another_part(nodes: dict[str, Any], folder: Path) -> None:
    calibrated(nodes, wan(), start_step=0, last_step=6, force_full_denoise=False)
    (file,) = folder.iterdir()
    _, said = reported(nodes, "MagPolicySpeedUp", wan(), SPEED_UP, start_step=6, last_step=12, disable_noise=True)
    name = magpolicy.preset(file).name
    assert said == (f"your calibration {name!r} is of another part of the noise levels than this run, and passed over",)


def test_the_report_of_a_handle_says_it_in_the_words_of_the_library(nodes: dict[str, Any], folder: Path) -> None:
    calibrated(nodes, wan())
    (file,) = folder.iterdir()
    other = wan()
    other.model.model_config.unet_config |= {"dim": 1536, "num_layers": 30}
    said = f"preset={str(file)!r} uses it all the same"
    for settings, expected in (({}, [said]), ({"preset": str(file)}, [])):
        with magpolicy.attach(other, speedup=2.0, learn=False, **settings) as handle:
            running.sample(other, "WAN21_T2V", **WHOLE)
            assert [problem.partition("; ")[2] for problem in handle.report.problems if "passed over" in problem] == expected
