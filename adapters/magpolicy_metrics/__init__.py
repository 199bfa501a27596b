"""Metrics of every run in the process: for OpenTelemetry (:func:`opentelemetry`), or for Prometheus (:func:`prometheus`)."""

import lazy_loader

# The core loads this package as a plugin; what exports metrics is to be imported by those who use it.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
