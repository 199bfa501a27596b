"""What a user of the nodes is told beside the figures: what would bring runs closer to the full run."""

from __future__ import annotations

from magpolicy import Calibration
from magpolicy.adapter import RunConfig
from magpolicy_comfyui._settings import Settings


def advice(settings: Settings, config: RunConfig) -> str:
    """In the words of the nodes; those of the library, where ``settings`` come from no node. Empty if there is nothing."""
    if settings.given is not None or not config.advice:
        return config.advice
    if not config.schedules:
        return "the node Speed up (magpolicy), or a speedup in this one, plans the run and forecasts what it skips"
    if settings.learn is None:
        return "the node Speed up (magpolicy) learns from your runs; or measure this model once with MagCache Calibration"
    if settings.learn is False:
        return "set learn to 'as it goes'"
    if _is_calibrated(config):  # learned from runs that skipped
        return "set learn to 'first run in full' for one run"
    return "run again: the next run is planned from what this one teaches"


def _is_calibrated(config: RunConfig) -> bool:
    given = config.given
    return isinstance(given, Calibration) or getattr(given, "calibration", None) is not None
