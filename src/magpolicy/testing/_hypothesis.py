"""Hypothesis, or a word on how to get it."""

from magpolicy._errors import require

require("hypothesis", "test")

from hypothesis import example, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

__all__ = ["example", "given", "settings", "st"]
