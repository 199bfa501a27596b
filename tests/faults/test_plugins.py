"""Faults in plugins: what an observer raises is warned of and harms no run, or comes out; what another hook raises says whose.

``MAGPOLICY_FAULTS=2000`` tries so many cases a scene in place of 12.
"""

import warnings

import pytest

import magpolicy
from magpolicy import AdapterError, MagPolicyError, PluginWarning

torch = pytest.importorskip("torch", reason="the torch extra is not installed")
pytest.importorskip("diffusers", reason="the diffusers extra is not installed")

from injection import KINDS, Faults, some  # noqa: E402
from scenes import SCENES, Net, begun, decided, footprint  # noqa: E402
from zoo._case import Draw  # noqa: E402

HERE = ["flux, guidance in separate calls", "sd3, by the rule", "flux, calibrating", "own loop in a with block", "own loop"]
OBSERVED = ("on_run_start", "on_decision", "on_run_end")


class Observer:
    """Notes what it is told, and passes a point at each."""

    def __init__(self, passage=lambda hook: None):
        self.seen, self.passage = [], passage

    @magpolicy.hookimpl
    def on_run_start(self, session):
        self.seen.append("on_run_start")
        self.passage("on_run_start")

    @magpolicy.hookimpl
    def on_decision(self, session, entry):
        self.seen.append((entry.stream, entry.step, entry.decision))
        self.passage("on_decision")

    @magpolicy.hookimpl
    def on_run_end(self, session, report):
        self.seen.append("on_run_end")
        self.passage("on_run_end")


@pytest.fixture
def register():
    manager, added = magpolicy.manager(), []

    def put_in(plugin):
        manager.register(plugin)
        added.append(plugin)
        return plugin

    yield put_in
    for plugin in added:
        manager.unregister(plugin)


@pytest.fixture(params=HERE)
def scene(request, monkeypatch, tmp_path):
    return begun(request.param, monkeypatch, tmp_path)


def run(scene):
    """A run; returns its result, what it raised, and what was warned of."""
    result = raised = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = scene.run()
        except BaseException as error:
            raised = type(error)  # the error itself has the frames of the run
    return result, raised, [str(each.message) for each in caught if issubclass(each.category, PluginWarning)]


def check(scene, wanted, listeners, armed):
    """A run whose observer raises at a point, and the next one."""
    hook, _, kind = armed
    before, handle = footprint(scene), scene.attach()
    for listener in listeners:
        listener.seen.clear()
    scene.faults.arm(*armed)
    result, raised, warned = run(scene)
    assert scene.faults.raised, armed
    scene.faults.arm()
    if issubclass(kind, Exception):
        assert raised is None, armed
        assert torch.equal(result, wanted.result), armed
        assert decided(handle) == wanted.decided, armed
        assert len(warned) == 1, armed
        assert f"failed in {hook}: {kind.__name__}: " in warned[0], armed
        assert all(listener.seen == wanted.seen for listener in listeners), armed
    else:
        assert raised is kind, armed
        for listener in listeners:  # who is told that a run begins is told that it ends
            assert listener.seen == [*wanted.seen[: len(listener.seen) - 1], "on_run_end"], armed
    assert not handle.running, armed
    assert handle.residuals_held == 0, armed
    assert scene.faults.residuals_alive == 0, armed
    result, raised, warned = run(scene)
    assert (raised, warned) == (None, []), armed
    assert torch.equal(result, wanted.result), armed
    assert decided(handle) == wanted.decided, armed
    handle.detach()
    del result
    assert scene.faults.residuals_alive == 0, armed
    assert footprint(scene) == before, armed


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_observer_raises(scene, register, request):
    plain = scene.run()
    listeners = [register(Observer())]
    register(Observer(scene.faults.passage))
    listeners.append(register(Observer()))
    wanted = Wanted(scene, listeners[0])
    assert wanted.seen == listeners[1].seen
    places = [(hook, number) for hook in OBSERVED for number in range(scene.faults.passed[hook] + 1)]
    for place, kind in some(((place, kind) for place in places for kind in KINDS), 12, request.node.name):
        check(scene, wanted, listeners, (*place, kind))
    scene.faults.arm()
    assert torch.equal(scene.run(), plain)


class Wanted:
    """What a run does that is not disturbed."""

    def __init__(self, scene, listener):
        scene.faults.arm()
        with scene.attach() as handle:
            self.result, self.decided = scene.run(), decided(handle)
        self.seen = list(listener.seen)


@pytest.mark.parametrize("hook", OBSERVED)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_observer_calls_the_model(register, hook, monkeypatch, tmp_path):
    """That is no step of the run."""
    monkeypatch.setenv("MAGPOLICY_HOME", str(tmp_path))
    scene = SCENES["own loop in a with block"](Faults())
    with scene.attach() as handle:
        wanted, trace, seen = scene.run(), decided(handle), []

    def passage(told):
        if told == hook and len(seen) < 3:
            seen.append(scene.case.call(scene.model, Draw(level=0.5))[0])

    register(Observer(passage))
    with scene.attach() as handle:
        assert torch.equal(scene.run(), wanted)
        assert decided(handle) == trace
    assert seen


class Unprintable(Exception):
    def __str__(self):
        raise ValueError


class Guest:
    """A plugin whose hooks answer, or raise, what they are told."""

    def __init__(self, hook, answer):
        self.hook, self.answer, self.__name__ = hook, answer, "guest"

    def _told(self, hook):
        if hook != self.hook:
            return None
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer

    @magpolicy.hookimpl(tryfirst=True)
    def attach(self, target, request):
        return self._told("attach")

    @magpolicy.hookimpl(tryfirst=True)
    def attached(self, target):
        return self._told("attached")

    @magpolicy.hookimpl(tryfirst=True)
    def preset_for(self, target):
        return self._told("preset_for")

    @magpolicy.hookimpl(tryfirst=True)
    def compile(self, target, request):
        return self._told("compile")

    @magpolicy.hookimpl
    def presets(self):
        return self._told("presets") or ()


ASKS = {
    "attach": lambda net: magpolicy.attach(net, steps=6, speedup=2.0),
    "attached": magpolicy.attached,
    "preset_for": lambda net: magpolicy.attach(net, steps=6, speedup=2.0),
    "compile": lambda net: magpolicy.compile(net, backend="eager"),
}


@pytest.fixture
def net(monkeypatch, tmp_path):
    monkeypatch.setenv("MAGPOLICY_HOME", str(tmp_path))
    return Net().eval()


def left(net):
    return {name: dict(module.__dict__) for name, module in net.named_modules()}


CLAIMED = [hook for hook in ASKS if hook != "attached"]
"""Those of which one plugin's answer is taken, so that none can be had without it."""


@pytest.mark.parametrize("kind", [*KINDS, Unprintable], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("hook", CLAIMED)
def test_a_hook_raises(net, register, hook, kind):
    before, raised = left(net), kind("on purpose")
    register(Guest(hook, raised))
    expected = AdapterError if isinstance(raised, Exception) else kind
    with pytest.raises(expected) as found:
        ASKS[hook](net)
    assert raised in (found.value, found.value.__cause__)
    assert left(net) == before


@pytest.mark.parametrize("error", [AdapterError("mine: try another"), magpolicy.ArgumentError("x=1 must be 2")], ids=repr)
@pytest.mark.parametrize("hook", CLAIMED)
def test_a_hook_raises_an_error_of_ours(net, register, hook, error):
    register(Guest(hook, error))
    with pytest.raises(type(error)) as found:
        ASKS[hook](net)
    assert found.value is error


@pytest.mark.parametrize("answer", [5, object(), [5], [None], "no such preset", {"a": 1}, [object(), "x"]])
def test_a_preset_that_is_none(net, register, answer):
    before = left(net)
    register(Guest("preset_for", answer))
    with pytest.raises(MagPolicyError):
        ASKS["preset_for"](net)
    assert left(net) == before


class Halfway:
    """Handles of which the second cannot be told."""

    def __iter__(self):
        yield "a handle"
        raise ValueError("lost")


FAILURES = {
    "an error": ValueError("lost"),
    "one without words": Unprintable(),
    "an error of ours": AdapterError("mine: try another"),
    "no handles": 5,
    "handles that end in an error": Halfway(),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_handles_that_cannot_be_told_stop_nobody_elses(net, register, failure):
    before = left(net)
    handle = magpolicy.attach(net, steps=6, speedup=2.0)
    register(Guest("attached", FAILURES[failure]))
    with pytest.warns(PluginWarning, match="plugin guest failed in attached: "):
        assert magpolicy.attached(net) == (handle,)
    with pytest.warns(PluginWarning, match="plugin guest failed in attached: "):
        assert magpolicy.detach(net) == 1
    assert left(net) == before
    with pytest.warns(PluginWarning):
        assert magpolicy.detach(net) == 0


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("ask", [magpolicy.attached, magpolicy.detach])
def test_handles_of_what_nobody_else_knows_cannot_be_told(register, ask, failure):
    answer = FAILURES[failure]
    register(Guest("attached", answer))
    expected = "^mine: try another$" if isinstance(answer, AdapterError) else "plugin guest failed on builtins.object"
    with pytest.raises(AdapterError, match=expected) as found:
        ask(object())
    if isinstance(answer, Exception):
        assert answer in (found.value, found.value.__cause__)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not issubclass(kind, Exception)])
def test_an_interruption_while_handles_are_looked_up_comes_out(net, register, kind):
    handle = magpolicy.attach(net, steps=6, speedup=2.0)
    register(Guest("attached", kind("on purpose")))
    with pytest.raises(kind):
        magpolicy.detach(net)
    handle.detach()


def test_a_handle_that_fails_to_detach_leaves_no_other_on(net, register):
    class Stuck:
        def detach(self):
            raise OSError("stuck")

    before = left(net)
    magpolicy.attach(net, steps=6, speedup=2.0)
    register(Guest("attached", [Stuck()]))
    with pytest.raises(OSError, match="stuck"):
        magpolicy.detach(net)
    assert left(net) == before


@pytest.mark.parametrize("kind", [*KINDS, Unprintable], ids=lambda kind: kind.__name__)
def test_presets_raise(register, kind):
    register(Guest("presets", kind("on purpose")))
    if issubclass(kind, Exception):
        with pytest.warns(PluginWarning, match=f"failed in presets: {kind.__name__}"):
            assert len(list(magpolicy.presets())) > 90
    else:
        with pytest.raises(kind):
            list(magpolicy.presets())


@pytest.mark.parametrize("answer", [5, [5], [None], "abc", {"a": 1}], ids=repr)
def test_presets_that_are_none(register, answer):
    register(Guest("presets", answer))
    with pytest.warns(PluginWarning, match="failed in presets"):
        assert len(list(magpolicy.presets())) > 90
