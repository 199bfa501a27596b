"""What holds inside a with block ends with it, at whatever line of our code the block is interrupted."""

import pytest

torch = pytest.importorskip("torch", reason="the torch extra is not installed")
pytest.importorskip("diffusers", reason="the diffusers extra is not installed")

from injection import broken, interrupted  # noqa: E402

from magpolicy_diffusers._runs import OwnLoop  # noqa: E402
from magpolicy_torch.host._scoped import Scoped  # noqa: E402


def a_value():
    value = Scoped("tried")
    return lambda: value.set("held"), lambda: value.get() is None and not value.everywhere()


def calls_that_are_no_steps():
    driver = OwnLoop(lambda: None, print)
    return driver.aside, lambda: not driver._aside


@pytest.mark.parametrize("thing", [a_value, calls_that_are_no_steps])
def test_an_interrupted_with_block_leaves_nothing(thing):
    opened, over = thing()

    def block():
        with opened():
            assert not over()

    with interrupted(None) as counted:
        block()
    assert counted["lines"] >= 5
    for line in range(counted["lines"]):
        where = broken(block, line)
        assert over(), where
