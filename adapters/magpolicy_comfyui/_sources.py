"""What a run is planned from, where the user names no preset: the best that is known of the model, which may be nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import frozen

from magpolicy.adapter import PresetMatches, named, names_a_file


@frozen
class SampledModel:
    """What of a model decides how its runs are planned. It is known once the model is sampled; a panel then asks with it."""

    preset: str | None = None
    """The preset that was calibrated on it; ``None``: none was."""
    flux: bool = False
    """Whether its noise levels are those of FLUX."""
    shift: float | None = None
    """Of its noise levels; ``None``: they have none."""

    @classmethod
    def with_sampling(cls, sampling: Any, preset: str | None) -> SampledModel:
        """One that is sampled with ``sampling``, ComfyUI's ``model_sampling``."""
        shift = getattr(sampling, "shift", None)
        kind = {base.__name__ for base in type(sampling).__mro__}
        return cls(preset, "ModelSamplingFlux" in kind, None if shift is None else float(shift))

    @classmethod
    def of(cls, values: Any) -> SampledModel | None:
        """From JSON values, as :meth:`to_dict` makes them; ``None`` if they are none."""
        if not isinstance(values, Mapping):
            return None
        preset, shift = values.get("preset"), values.get("shift")
        return cls(
            preset=preset if isinstance(preset, str) and not names_a_file(preset) else None,
            flux=bool(values.get("flux")),
            shift=float(shift) if isinstance(shift, int | float) else None,
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"preset": self.preset, "flux": self.flux, "shift": self.shift}

    def for_plan(self) -> PresetMatches | None:
        """What a run is planned from, best first; ``None``: nothing is known of the model.

        Raises:
            PresetError: the preset is not known.
        """
        return None if self.preset is None else named(self.preset)
