"""A fault at each point of a run, of each kind: it comes out as it was raised, and nothing of it is left.

``MAGPOLICY_FAULTS=2000`` tries so many a scene in place of 15.
"""

import itertools

import pytest

torch = pytest.importorskip("torch", reason="the torch extra is not installed")
pytest.importorskip("diffusers", reason="the diffusers extra is not installed")

from injection import KINDS, Faults, only_new_garbage, some  # noqa: E402
from scenes import SCENES, decided, footprint  # noqa: E402

REFUSED = (ArithmeticError, AssertionError, AttributeError, LookupError, NameError, RuntimeError, TypeError, ValueError)
"""What a first skip raises where the model is not as it was observed: it then computes, also for an error of the host's own."""
BEFORE = ("cold", "warm")
"""The fault comes in the first run of a model, or after one that showed how its calls are made."""


@pytest.fixture
def home(monkeypatch, tmp_path):
    folders = itertools.count()
    return lambda: monkeypatch.setenv("MAGPOLICY_HOME", str(tmp_path / str(next(folders))))


@pytest.fixture(params=SCENES)
def scene(request, monkeypatch):
    only_new_garbage()
    faults = Faults()
    faults.in_arithmetic(monkeypatch)
    if "compiled" in request.param:
        torch.compiler.reset()
    yield SCENES[request.param](faults)
    if "compiled" in request.param:
        torch.compiler.reset()


def passages(scene, home):
    """The points that a run passes, cold and warm, and what the first, the second and the third run of a model do."""
    home()
    found, wanted = [], []  # the runs of a model that learns nothing are alike
    with scene.attach() as handle:
        for mode in (*BEFORE, None):
            scene.faults.arm()
            result = scene.run()
            wanted.append((result, decided(handle)))
            found += [(mode, point, n) for point, count in scene.faults.passed.items() for n in range(count + 1) if mode]
    return found, wanted


def broken(scene, armed):
    """Run with a fault; returns whether the run raised, and checks that it raised what was to be raised."""
    kind, came = armed[2], None
    scene.faults.arm(*armed)
    try:
        scene.run()
    except BaseException as error:
        came = error
    assert scene.faults.raised, armed
    scene.faults.arm()
    if came is None:
        assert issubclass(kind, REFUSED), armed
        assert not issubclass(kind, torch.OutOfMemoryError), armed
    else:  # a generator turns a StopIteration into another error
        assert isinstance(came, kind) or (kind is StopIteration and "StopIteration" in str(came)), armed
    return came is not None


def same_as(found, wanted):
    assert found[1] == wanted[1]
    assert torch.equal(found[0], wanted[0])


def check(scene, wanted, mode, armed):
    before = footprint(scene)
    handle = scene.attach()
    if mode == "warm":
        scene.run()
    raised = broken(scene, armed)
    assert not handle.running
    if scene.knows_its_end or armed[0] != "callback":
        assert handle.residuals_held == 0
        assert scene.faults.residuals_alive == 0
    found = scene.run(), decided(handle)
    if not scene.learns:
        same_as(found, wanted[0])
    elif raised:  # the next run is planned from those that came to their end; else from one that is none of these
        assert any(found[1] == each[1] and torch.equal(found[0], each[0]) for each in wanted)
    del found
    handle.detach()
    assert scene.faults.residuals_alive == 0
    assert footprint(scene) == before


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_fault_at_a_point(scene, home, request):
    plain = scene.run()
    points, wanted = passages(scene, home)
    cases = some(((*place, kind) for place in points for kind in KINDS), 15, request.node.name)
    for mode, point, number, kind in cases:
        home()
        check(scene, wanted, mode, (point, number, kind))
    scene.faults.arm()
    assert torch.equal(scene.run(), plain)
