"""What an adapter for a host on torch needs: stacks, evaluation, residuals, reports.

Our own adapters for diffusers and ComfyUI use these names and no others; a stranger's adapter has the same.
docs/how-to/write-a-plugin.md shows one from beginning to end.
"""

from __future__ import annotations

from magpolicy_torch.blocks._layout import Layout
from magpolicy_torch.blocks._stack import BlockStack
from magpolicy_torch.device._accelerator import forked
from magpolicy_torch.evaluation._interceptor import CallInterceptor, HostCall
from magpolicy_torch.evaluation._model import HostModel
from magpolicy_torch.evaluation._run import Run
from magpolicy_torch.host._compile import check_options
from magpolicy_torch.host._handle import Attached
from magpolicy_torch.host._report import Record, Report
from magpolicy_torch.host._scoped import Scoped
from magpolicy_torch.residuals._moments import Moments, versions
from magpolicy_torch.residuals._store import ResidualStore

__all__ = [
    "Attached",
    "BlockStack",
    "CallInterceptor",
    "HostCall",
    "HostModel",
    "Layout",
    "Moments",
    "Record",
    "Report",
    "ResidualStore",
    "Run",
    "Scoped",
    "check_options",
    "forked",
    "versions",
]
