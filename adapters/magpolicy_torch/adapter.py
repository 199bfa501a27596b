"""What an adapter for a host on torch needs: stacks, evaluation, residuals, reports.

Our own adapters for diffusers and ComfyUI use these names and no others; a stranger's adapter has the same.
docs/how-to/write-a-plugin.md shows one from beginning to end.
"""

from __future__ import annotations

from magpolicy_torch.blocks._layout import Layout
from magpolicy_torch.blocks._patch import Patch
from magpolicy_torch.blocks._put_on import PutOn
from magpolicy_torch.blocks._stack import BlockStack
from magpolicy_torch.blocks._stack_spec import StackSpec, StackTable
from magpolicy_torch.blocks._unwrap import own_class, own_name, unwrap
from magpolicy_torch.device._accelerator import default as default_device
from magpolicy_torch.device._accelerator import forked
from magpolicy_torch.evaluation._interceptor import CallInterceptor, HostCall
from magpolicy_torch.evaluation._model import HostModel
from magpolicy_torch.evaluation._record import Record
from magpolicy_torch.evaluation._run import Run
from magpolicy_torch.evaluation._why import Why
from magpolicy_torch.host._attached import Attached, AttachedToLoop
from magpolicy_torch.host._compile import check_options, compile_module
from magpolicy_torch.host._handle import stack_for
from magpolicy_torch.host._held import Held
from magpolicy_torch.host._host_run import HostRun, trains
from magpolicy_torch.host._identity import classes_of, identity_of
from magpolicy_torch.host._known_models import KnownModel, near_misses, rows_of
from magpolicy_torch.host._learning import Learner, Lesson
from magpolicy_torch.host._noise_levels import Levels, SchedulerClock, Times, TimestepClock
from magpolicy_torch.host._report import Report
from magpolicy_torch.host._scoped import Scoped
from magpolicy_torch.host._streams import StreamNamer
from magpolicy_torch.host._told_time import check_denoises, denoises, tells_time
from magpolicy_torch.host._trial import Trial, checked_seeds, seeded
from magpolicy_torch.pictures._grid import BRIGHTER, GridRow, draw_grid
from magpolicy_torch.pictures._similarity import Similarity, SimilarityMeter
from magpolicy_torch.ranks._find import SharedBy
from magpolicy_torch.ranks._group import RankGroup
from magpolicy_torch.residuals._arithmetic import apply
from magpolicy_torch.residuals._moments import Moments, versions
from magpolicy_torch.residuals._store import ResidualStore

__all__ = [
    "BRIGHTER",
    "Attached",
    "AttachedToLoop",
    "BlockStack",
    "CallInterceptor",
    "GridRow",
    "Held",
    "HostCall",
    "HostModel",
    "HostRun",
    "KnownModel",
    "Layout",
    "Learner",
    "Lesson",
    "Levels",
    "Moments",
    "Patch",
    "PutOn",
    "RankGroup",
    "Record",
    "Report",
    "ResidualStore",
    "Run",
    "SchedulerClock",
    "Scoped",
    "SharedBy",
    "Similarity",
    "SimilarityMeter",
    "StackSpec",
    "StackTable",
    "StreamNamer",
    "Times",
    "TimestepClock",
    "Trial",
    "Why",
    "apply",
    "check_denoises",
    "check_options",
    "checked_seeds",
    "classes_of",
    "compile_module",
    "default_device",
    "denoises",
    "draw_grid",
    "forked",
    "identity_of",
    "near_misses",
    "own_class",
    "own_name",
    "rows_of",
    "seeded",
    "stack_for",
    "tells_time",
    "trains",
    "unwrap",
    "versions",
]
