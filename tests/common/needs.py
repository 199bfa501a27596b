"""Leaving out the tests of a module without what they need."""

from __future__ import annotations

import importlib.util

import pytest


def needs(name: str, *, reason: str) -> None:
    """``pytest.importorskip`` that imports nothing: for what takes seconds to import, in each process that collects."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(reason, allow_module_level=True)
