"""The nodes' inputs, in the origin's names and order, and the settings that they mean.

Nodes named as in ComfyUI-MagCache take its inputs in its order, so that its workflows load; new inputs come after.
"""

from __future__ import annotations

from typing import Any

import magpolicy
from magpolicy import Preset
from magpolicy_comfyui._settings import Settings
from magpolicy_comfyui.nodes import _preset_menu

OWN = "magpolicy"
MANUAL, PRESET = "as set here", "the preset's"
Inputs = dict[str, dict[str, Any]]


def rule_inputs() -> dict[str, Any]:
    """The settings of the rule, in the origin's order."""
    return {
        "model_type": (
            _preset_menu.choices(),
            {"default": _preset_menu.AUTO, "tooltip": "Which model this is: its calibration decides. auto reads the model."},
        ),
        "magcache_thresh": (
            "FLOAT",
            {"default": 0.24, "min": 0.0, "max": 10.0, "step": 0.001, "round": 0.001,
             "tooltip": "Bound on the accumulated error. More skips, less like the full run."},
        ),
        "retention_ratio": (
            "FLOAT",
            {"default": 0.1, "min": 0.0, "max": 1.0, "step": 0.01, "tooltip": "Leading share of the run that always computes."},
        ),
        "magcache_K": ("INT", {"default": 5, "min": 0, "max": 100, "tooltip": "How many steps in a row may be skipped."}),
        "start_step": ("INT", {"default": 0, "min": 0, "max": 10000, "tooltip": "First step that may be skipped."}),
        "end_step": (
            "INT",
            {"default": -1, "min": -10000, "max": 10000, "tooltip": "Last one; negative counts from the end."},
        ),
    }  # fmt: skip


def more_inputs() -> dict[str, Any]:
    """The new inputs, which old workflows do not have."""
    return {
        "settings": (
            [MANUAL, PRESET],
            {"default": MANUAL, "tooltip": "Take threshold, K and retention from here, or those published with the preset."},
        ),
        "semantics": (
            list(magpolicy.semantics_names()),
            {"default": OWN, "tooltip": "magpolicy's own rule, or that of a published implementation, decision for decision."},
        ),
        "offload": (["device", "cpu"], {"default": "device", "tooltip": "Where residuals wait between their uses."}),
        "speedup": (
            "FLOAT",
            {"default": 0.0, "min": 0.0, "max": 20.0, "step": 0.1,
             "tooltip": "Plan for a speedup in place of a threshold, e.g. 2 for half the evaluations. 0: by the threshold."},
        ),
        "forecast": (
            ["auto", "hold", "linear", "calibrated", "second-order"],
            {"default": "auto", "tooltip": "What a skipped step gets: the last residual, or where the last ones are heading."},
        ),
    }  # fmt: skip


def settings_of(
    model_type: str,
    magcache_thresh: float,
    retention_ratio: float,
    magcache_K: int,
    start_step: int,
    end_step: int,
    settings: str = MANUAL,
    semantics: str = OWN,
    offload: str = "device",
    speedup: float = 0.0,
    forecast: str = "auto",
    unique_id: str | None = None,
) -> Settings:
    """The settings that a node's inputs mean.

    Raises:
        PresetError: ``model_type`` names no preset.
        ArgumentError: a setting is out of range; the message names it.
    """
    source = _preset_menu.find(model_type, published=settings == PRESET and not speedup)
    rule: dict[str, Any] = {"threshold": magcache_thresh, "max_skips": magcache_K, "retention": retention_ratio}
    if settings == PRESET:
        known = _recommended(source)
        rule = dict.fromkeys(rule) if source is None else {k: v if known[k] is None else known[k] for k, v in rule.items()}
    made = Settings(
        source=source,
        **rule,
        start_step=start_step,
        end_step=end_step,
        semantics=None if semantics == OWN else semantics,
        offload=None if offload == "device" else offload,
        speedup=speedup or None,
        forecast=None if forecast == "auto" else forecast,
        node=unique_id,
        follow_steps=model_type == "hunyuan_video1.5",
    )
    made.check()
    return made


def _recommended(source: Any) -> dict[str, Any]:
    """The settings that come with a preset."""
    if not isinstance(source, Preset):
        return {}
    return {"threshold": source.threshold, "max_skips": source.max_skips, "retention": source.retention}
