"""For anyone who writes a policy or an adapter: Hypothesis strategies and the conformance kit.

Needs Hypothesis (the ``test`` extra) for the strategies and :func:`check_policy`; :func:`check_adapter` needs nothing more than
the core.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from magpolicy.testing._adapter_kit import AdapterRig, RigStop, check_adapter

if TYPE_CHECKING:
    from magpolicy.testing import strategies
    from magpolicy.testing._policy_kit import check_policy

__all__ = ["AdapterRig", "RigStop", "check_adapter", "check_policy", "strategies"]


def __getattr__(name: str) -> Any:
    if name not in ("strategies", "check_policy"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    from magpolicy._errors import require

    require("hypothesis", "test")
    if name == "strategies":
        return importlib.import_module("magpolicy.testing.strategies")
    return importlib.import_module("magpolicy.testing._policy_kit").check_policy
