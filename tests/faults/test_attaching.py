"""An interruption between any two lines of attaching and of detaching: what is left is found and comes off, or nothing is left.

``MAGPOLICY_FAULTS=100000`` tries every line in place of 40 of each.
"""

import gc

import pytest

import magpolicy

torch = pytest.importorskip("torch", reason="the torch extra is not installed")
pytest.importorskip("diffusers", reason="the diffusers extra is not installed")

from injection import Faults, broken, interrupted, only_new_garbage, some  # noqa: E402
from scenes import PLAN, STEPS, LoopScene, Net, PipelineScene, footprint  # noqa: E402


class ModuleScene:
    """A module of plain PyTorch."""

    def __init__(self, faults):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.target = self.model = Net().eval()

    def attach(self):
        return magpolicy.attach(self.target, steps=STEPS, schedule=PLAN)

    def run(self):
        x = torch.linspace(-1, 1, 8).view(1, 2, 4)
        with torch.no_grad(), magpolicy.attached(self.target)[0].run() as handle, handle.stream("cond"):
            return torch.stack([self.model(x * step) for step in range(STEPS)])


TARGETS = {
    "a module": ModuleScene,
    "a pipeline": lambda faults: PipelineScene(faults, "FluxPipeline", "true cfg"),
    "a model of diffusers": LoopScene,
}


@pytest.fixture(params=TARGETS)
def scene(request, monkeypatch, tmp_path):
    monkeypatch.setenv("MAGPOLICY_HOME", str(tmp_path))
    only_new_garbage()
    scene = TARGETS[request.param](Faults())
    handle = scene.attach()
    scene.wanted = scene.run()
    handle.detach()
    return scene


def lines(function, key):
    with interrupted(None) as counted:
        function()
    return some(counted["passages"], 40, key)


def check(scene, before, where):
    """What an interruption has left is found; and taken off, it leaves nothing."""
    if not magpolicy.attached(scene.target):
        assert footprint(scene) == before, where
    magpolicy.detach(scene.target)
    gc.collect()
    assert footprint(scene) == before, where


def ends_well(scene, before):
    handle = scene.attach()
    assert torch.equal(scene.run(), scene.wanted)
    handle.detach()
    assert footprint(scene) == before


def test_attaching_is_interrupted(scene, request):
    before = footprint(scene)
    cases = lines(scene.attach, request.node.name)
    magpolicy.detach(scene.target)
    for line in cases:
        check(scene, before, broken(scene.attach, line))
    ends_well(scene, before)


def test_detaching_is_interrupted(scene, request):
    before = footprint(scene)
    cases = lines(scene.attach().detach, request.node.name)
    for line in cases:
        handle = scene.attach()
        where = broken(handle.detach, line)
        check(scene, before, where)
        handle.detach()
        assert footprint(scene) == before, where
    ends_well(scene, before)


def test_an_interruption_while_another_handle_takes_the_place(scene, request):
    before, first = footprint(scene), scene.attach()
    cases = lines(scene.attach, request.node.name)
    for line in cases:
        magpolicy.detach(scene.target)
        first = scene.attach()
        check(scene, before, broken(scene.attach, line))
    assert first is not None
    ends_well(scene, before)
