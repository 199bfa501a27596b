"""Other caches on a model, which skip evaluations by themselves.

A cache keeps what the model returned, and goes on from that. Of two on one model each would keep what the other made up, and
the errors of both would add up, seen by neither. So where another one is found, ours computes whatever the other lets through,
and says so: the picture is the one that the other makes alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KEY = "easycache"
"""Where ComfyUI's nodes EasyCache and LazyCache keep what they hold, in transformer options."""


def other_cache(model_options: Mapping[str, Any]) -> str:
    """Why every evaluation computes because of ComfyUI's own caches on the model, in words; empty if there is none."""
    holder = (model_options.get("transformer_options") or {}).get(KEY)
    if holder is None:
        return ""
    name = getattr(holder, "name", None) or "EasyCache"
    return (
        f"{name} is on this model too, and skips by itself: of two caches each would go on from what the other made up, so "
        f"this one computes whatever {name} lets through; use one of them"
    )
