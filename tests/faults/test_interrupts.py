"""An interruption between any two lines of our code, as a signal makes it: the next run is that of a fresh process.

``MAGPOLICY_FAULTS=2000`` tries so many lines a scene; without it, none are tried.
"""

import pytest

torch = pytest.importorskip("torch", reason="the torch extra is not installed")
pytest.importorskip("diffusers", reason="the diffusers extra is not installed")

from injection import SIZE, broken, interrupted, some  # noqa: E402
from scenes import BRANCHES, SCENES, begun, decided, footprint  # noqa: E402

HERE = [name for name in SCENES if "compiled" not in name and "learning" not in name]


@pytest.fixture(params=HERE)
def scene(request, monkeypatch, tmp_path):
    return begun(request.param, monkeypatch, tmp_path)


def left_between_calls(scene):
    """What a run decides and computes that follows one that was left within its first step, where nothing tells that it was.

    An interruption before a call has come to our run is one between two calls.
    """
    if scene.knows_its_end:
        return
    for calls in range(1, len(BRANCHES) + 1):
        with scene.attach() as handle:
            scene.leave(calls)
            yield scene.run(), decided(handle)


@pytest.mark.skipif(not SIZE, reason="a campaign: set MAGPOLICY_FAULTS")  # not every line is known to be safe yet
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_run_is_interrupted(scene, request):
    scene.run()  # diffusers leaves things of its own on a model
    before = footprint(scene)
    with scene.attach() as handle, interrupted(None) as counted:
        wanted = scene.run()
    right = [(wanted, decided(handle)), *left_between_calls(scene)]
    for line in some(counted["passages"], 5, request.node.name):
        handle = scene.attach()
        where = broken(scene.run, line)
        assert not handle.running, where
        if scene.knows_its_end:
            assert handle.residuals_held == 0, where
            assert scene.faults.residuals_alive == 0, where
        result, trace = scene.run(), decided(handle)
        assert any(torch.equal(result, each) and trace == its for each, its in right), where
        handle.detach()
        assert footprint(scene) == before, where
        assert scene.faults.residuals_alive == 0, where
