# The public names, each once: type checkers read this file, and lazy-loader takes from it where a name is imported from.
from .blocks._layout import Layout
from .blocks._stack import BlockStack
from .evaluation._run import Run, evaluate
from .host._branches import joint_calibration
from .host._handle import Handle
from .host._report import Report, TimedCall
from .host._run_step import run_step
from .host._trial import trial
from .residuals._moments import Moments
from .residuals._store import ResidualStore

__all__ = [
    "BlockStack",
    "Handle",
    "Layout",
    "Moments",
    "Report",
    "ResidualStore",
    "Run",
    "TimedCall",
    "evaluate",
    "joint_calibration",
    "run_step",
    "trial",
]
