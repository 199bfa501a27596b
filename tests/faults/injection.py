"""Faults that are raised on purpose: at the passages of named points of a run, or at any line of our code."""

from __future__ import annotations

import asyncio
import contextlib
import dis
import functools
import gc
import os
import random
import sys
import weakref
from pathlib import Path

import torch
from magpolicy_torch.residuals import _arithmetic
from magpolicy_torch.residuals._store import ResidualStore

SIZE = int(os.environ.get("MAGPOLICY_FAULTS", "0"))
"""How many cases each generator tries; 0: as many as continuous integration has time for."""

KINDS = (
    RuntimeError, ValueError, TypeError, AttributeError, AssertionError, ZeroDivisionError, KeyError, StopIteration, OSError,
    RecursionError, MemoryError, torch.OutOfMemoryError,
    KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError,
)  # fmt: skip
"""What is raised: exceptions of all sorts, memory that runs short, and what is no ``Exception``."""


def some(cases, usual, key):
    """So many of ``cases``, the same ones for each ``key``."""
    cases = list(cases)
    size = SIZE or usual
    return cases if len(cases) <= size else random.Random(repr(key)).sample(cases, size)


def only_new_garbage():
    """Let collections look at what is made from now on: all that torch and diffusers brought takes a tenth of a second."""
    gc.collect()
    gc.freeze()


class Faults:
    """Counts the passages of points, and raises at one of them.

    ``armed`` is the point, the number of the passage there, and what is raised.
    """

    def __init__(self):
        self.passed, self.armed, self.raised = {}, None, False
        self.residuals = []

    def passage(self, point):
        number = self.passed[point] = self.passed.get(point, -1) + 1
        if self.armed is not None and self.armed[:2] == (point, number):
            self.raised = True
            raise self.armed[2]("on purpose")

    def arm(self, *armed):
        self.passed, self.armed, self.raised = {}, armed or None, False

    def on_module(self, point, module):
        """A hook of the host's: it is there before anything is attached, and after."""
        module.register_forward_pre_hook(lambda *_: self.passage(point))

    def around(self, point, function):
        def passing(*args, **kwargs):
            self.passage(point)
            return function(*args, **kwargs)

        return passing

    def in_arithmetic(self, monkeypatch):
        """Points in our own work with tensors, which allocates: that is where memory runs short."""
        made = _arithmetic.difference

        def noted(after, before):
            self.passage("residual is made")
            residual = made(after, before)
            self.residuals.append(weakref.ref(residual))
            return residual

        monkeypatch.setattr(_arithmetic, "difference", noted)
        for point, holder, name in (
            ("residual is forecast", _arithmetic, "forecast"),
            ("residual is added", _arithmetic, "apply"),
            ("residual is stored", ResidualStore, "put"),
            ("residual is taken", ResidualStore, "take"),
        ):
            monkeypatch.setattr(holder, name, self.around(point, getattr(holder, name)))

    @property
    def residuals_alive(self):
        if any(kept() is not None for kept in self.residuals):
            gc.collect()
        self.residuals = [kept for kept in self.residuals if kept() is not None]
        return len(self.residuals)


OURS = Path(sys.modules["magpolicy"].__file__).parents[1], Path(_arithmetic.__file__).parents[2]


_EXIT = ("LOAD_CONST", None)


@functools.cache
def _exits(code):
    """Where in ``code`` with blocks end without an exception: what is called there is ``__exit__(None, None, None)``."""
    found = [(each.offset, (each.opname, each.argval)) for each in dis.get_instructions(code)]
    return {offset for n, (offset, _) in enumerate(found) if [one for _, one in found[n : n + 3]] == [_EXIT] * 3}


def _leaves_block(frame):
    return frame.f_lasti in _exits(frame.f_code)


@contextlib.contextmanager
def interrupted(line, kind=KeyboardInterrupt):
    """Raise ``kind`` at the ``line``-th line of our code that is run inside; ``None`` only counts. Yields where it was, and the
    first and the last passage of each line.

    As ``KeyboardInterrupt`` of a signal, which comes between any two lines.
    """
    found = {"lines": 0, "where": "", "passages": []}
    known, passed = {}, {}

    def enter(frame, event, _):
        code = frame.f_code
        ours = known.get(code)
        if ours is None:
            ours = known[code] = code.co_filename.startswith(tuple(map(str, OURS))) and "/magpolicy" in code.co_filename
        return step if ours else None

    def step(frame, event, _):
        if event == "line" and not _leaves_block(frame):
            passed.setdefault((frame.f_code, frame.f_lineno), []).append(found["lines"])
            found["lines"] += 1
            if found["lines"] - 1 == line:
                found["where"] = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} ({frame.f_code.co_qualname})"
                raise kind("on purpose")
        return step

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        yield found
    finally:
        sys.settrace(before)
        found["passages"] = sorted({each for numbers in passed.values() for each in (numbers[0], numbers[-1])})


def broken(function, line):
    """Call ``function``, interrupted at ``line``; returns where that was."""
    try:
        with interrupted(line) as found:
            function()
    except KeyboardInterrupt:
        pass
    finally:
        gc.collect()  # what is interrupted in a finaliser is left to the collector
    return found["where"]
