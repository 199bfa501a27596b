"""Names of the streams of a call: told by the ids that ComfyUI gives each condition, never by the order of calls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from magpolicy_torch.adapter import StreamNamer

ROLES = {"positive": "cond", "negative": "uncond"}


def guidance_of(guider: Any) -> float | None:
    """The scale of classifier-free guidance; ``None`` for guiders that combine conditions in another way."""
    scale = getattr(guider, "cfg", None)
    conds = {role for role, given in guider.conds.items() if given}
    return float(scale) if conds == set(ROLES) and isinstance(scale, int | float) else None


def evaluated_by(guider: Any) -> tuple[str, ...]:
    """The conditions that a guider evaluates, as streams; at a guidance scale of 1 it leaves the negative one out."""
    names = tuple(ROLES.get(role, role) for role, given in guider.conds.items() if given)
    alone = guidance_of(guider) == 1.0 and not guider.model_options.get("disable_cfg1_optimization", False)
    return tuple(name for name in names if not (alone and name == "uncond"))


class StreamNames(StreamNamer):
    """Names the streams of one sampling. ComfyUI copies a condition with an area to the other side, id and all; so an id may
    have several roles.

    Args:
        conditions: those of a guider, by role.
    """

    def __init__(self, conditions: Mapping[str, Iterable[Mapping[str, Any]] | None] | None = None) -> None:
        super().__init__()
        for role, conds in (conditions or {}).items():
            for cond in conds or ():
                self.condition(cond.get("uuid"), ROLES.get(role, role))

    def of(self, options: Mapping[str, Any], batch: int) -> tuple[str, ...] | None:
        """The streams of one call of the model, in batch order; ``None`` if they cannot be told.

        Args:
            options: its transformer options.
            batch: samples in it.
        """
        uuids: Sequence[Any] = options.get("uuids") or ()
        sides: Sequence[int] = options.get("cond_or_uncond") or ()
        if not uuids or batch % len(uuids) or len(sides) != len(uuids):
            return None
        names = [self.known(uuid) or self.condition(uuid, self._role(side)) for uuid, side in zip(uuids, sides, strict=True)]
        return self.evaluated(names, getattr(options.get("context_window"), "index_list", None) or ())

    def _role(self, side: int) -> str:
        return self.roles[side] if side < len(self.roles) else f"cond {side}"
