"""A value of a with block is gone after it, at whatever line of our code the block is interrupted."""

import pytest

torch = pytest.importorskip("torch", reason="the torch extra is not installed")

from injection import broken, interrupted  # noqa: E402
from magpolicy_torch.host._scoped import Scoped  # noqa: E402


def test_an_interrupted_with_block_leaves_no_value():
    value = Scoped("tried")

    def block():
        with value.set("held"):
            value.get()

    with interrupted(None) as counted:
        block()
    assert counted["lines"] > 5
    for line in range(counted["lines"]):
        where = broken(block, line)
        assert value.get() is None, where
        assert value.everywhere() == [], where
