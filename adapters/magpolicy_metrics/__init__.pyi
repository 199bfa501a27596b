# The public names, each once: type checkers read this file, and lazy-loader takes from it where a name is imported from.
from ._metrics import Metrics
from ._start import opentelemetry, prometheus

__all__ = [
    "Metrics",
    "opentelemetry",
    "prometheus",
]
