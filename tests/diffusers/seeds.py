"""Seeds, for what draws from torch's own generator."""

from __future__ import annotations

import torch


def seed(number: int) -> None:
    """``torch.manual_seed`` for the CPU alone.

    That one also keeps the whole stack as text for each kind of device that is not there: milliseconds within pytest, and tests
    seed thousands of times.
    """
    torch.default_generator.manual_seed(number)
