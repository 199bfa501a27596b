"""magpolicy for PyTorch: residuals, block stacks, and the two ways in, ``magpolicy.attach`` and :func:`run_step`.

Hosts' adapters build on :class:`BlockStack`, :class:`Run` and :func:`evaluate`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from magpolicy_torch.blocks._layout import Layout
    from magpolicy_torch.blocks._stack import BlockStack
    from magpolicy_torch.evaluation._evaluate import evaluate
    from magpolicy_torch.evaluation._run import Run
    from magpolicy_torch.host._handle import Handle
    from magpolicy_torch.host._report import Report
    from magpolicy_torch.host._run_step import run_step
    from magpolicy_torch.host._trial import trial
    from magpolicy_torch.residuals._moments import Moments
    from magpolicy_torch.residuals._store import ResidualStore
else:
    _HOMES = {
        "BlockStack": "blocks._stack",
        "Handle": "host._handle",
        "Layout": "blocks._layout",
        "Moments": "residuals._moments",
        "Report": "host._report",
        "ResidualStore": "residuals._store",
        "Run": "evaluation._run",
        "evaluate": "evaluation._evaluate",
        "run_step": "host._run_step",
        "trial": "host._trial",
    }

    # The core loads this package as a plugin with every run; torch is to be imported by those who use it.
    def __getattr__(name):
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


__all__ = ["BlockStack", "Handle", "Layout", "Moments", "Report", "ResidualStore", "Run", "evaluate", "run_step", "trial"]
