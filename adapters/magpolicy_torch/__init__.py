"""magpolicy for PyTorch: residuals, block stacks, and the two ways in, ``magpolicy.attach`` and :func:`run_step`.

Hosts' adapters build on :class:`BlockStack`, :class:`Run` and :func:`evaluate`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from magpolicy_torch._calibrating import Moments
    from magpolicy_torch._call import evaluate
    from magpolicy_torch._handle import Handle
    from magpolicy_torch._layout import Layout
    from magpolicy_torch._report import Report
    from magpolicy_torch._run import Run
    from magpolicy_torch._stack import BlockStack
    from magpolicy_torch._step import run_step
    from magpolicy_torch._store import ResidualStore
    from magpolicy_torch._trial import trial
else:
    _HOMES = {
        "BlockStack": "_stack",
        "Handle": "_handle",
        "Layout": "_layout",
        "Moments": "_calibrating",
        "Report": "_report",
        "ResidualStore": "_store",
        "Run": "_run",
        "evaluate": "_call",
        "run_step": "_step",
        "trial": "_trial",
    }

    # The core loads this package as a plugin with every run; torch is to be imported by those who use it.
    def __getattr__(name):
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


__all__ = ["BlockStack", "Handle", "Layout", "Moments", "Report", "ResidualStore", "Run", "evaluate", "run_step", "trial"]
