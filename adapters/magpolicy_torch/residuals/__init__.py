"""Residuals as tensors: what a block stack adds to its input, taken, kept and given back.

``_arithmetic`` is the one place where tensors are added and subtracted, ``_store`` is where residuals wait for the steps
that reuse them, and ``_moments`` measures them while a calibration runs. Nothing here knows a model. ``evaluation/`` and
``host/`` import it.
"""
