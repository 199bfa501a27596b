"""What magpolicy would register with diffusers, if that had a table of caches: a config, and how it is applied and removed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

import magpolicy


@frozen(kw_only=True)
class MagPolicyConfig:
    """Skips steps of a model by a plan, or by the published rule.

    >>> MagPolicyConfig(num_inference_steps=28, speedup=2.0).arguments()
    {'steps': 28, 'speedup': 2.0}

    Args:
        num_inference_steps: evaluations of a run, which a model by itself does not know.
        speedup: evaluations per computed one, or ``"quality"``, ``"balanced"``, ``"fast"``.
        settings: any other arguments of :func:`magpolicy.attach`.
    """

    num_inference_steps: int
    speedup: float | str | None = None
    settings: Mapping[str, Any] = field(factory=dict)

    def arguments(self) -> dict[str, Any]:
        """The arguments of :func:`magpolicy.attach`."""
        speedup = {} if self.speedup is None else {"speedup": self.speedup}
        return {"steps": self.num_inference_steps, **speedup, **self.settings}


def apply_magpolicy(module: Any, config: MagPolicyConfig) -> None:
    """Attach to the model, as the config says.

    Raises:
        ArgumentError: a setting is of no use; the model is as it was.
        AdapterError: the model cannot be attached to.
    """
    magpolicy.attach(module, **config.arguments())


def remove_magpolicy(module: Any) -> None:
    """Detach from the model, which is then as it was."""
    magpolicy.detach(module)
