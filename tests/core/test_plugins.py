"""Plugins of somebody else's distribution, found through the entry point: good ones work, bad ones do no harm."""

import json
import os
import re
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest

import magpolicy
from magpolicy import AdapterError, Curve, PluginWarning, Preset, Session

GOOD = """
import magpolicy

calls = []

@magpolicy.hookimpl
def presets():
    yield magpolicy.Preset(
        name="guest", curve=magpolicy.Curve([1.0, 1.02, 0.99]), threshold=0.1, max_skips=2, retention=0.0,
        aliases=("Guest/Model",),
    )

@magpolicy.hookimpl
def attach(target, request):
    if target == "guest model":
        return ("handle of the guest", request.scope, request.session(steps=3).steps)

@magpolicy.hookimpl
def on_run_start(session):
    calls.append("start")

@magpolicy.hookimpl
def on_decision(session, entry):
    calls.append((entry.stream, entry.decision.reason))

@magpolicy.hookimpl
def on_run_end(session):
    calls.append(("end", len(session.trace)))
"""

# What every test runs: a preset of a plugin, an attach, a run, and who was found and why not; warnings are collected.
PROGRAM = """
import json, sys, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import magpolicy
    found = {info.name: [info.distribution, info.version, list(info.hooks), info.problem] for info in magpolicy.plugins()
             if info.distribution != "magpolicy"}
    names = [name for name in magpolicy.presets() if name.startswith("guest")]
    handles = []
    for target in ("guest model", "nobody's model"):
        try:
            handles.append(magpolicy.attach(target, preset="flux"))
        except magpolicy.AdapterError as error:
            handles.append(str(error))
    with magpolicy.Session("flux", steps=4) as session:
        for _ in range(4):
            session.decide("cond")
            session.commit()
    schedule = str(magpolicy.Schedule.from_trace(session.trace))
calls = getattr(sys.modules.get("good_plugin"), "calls", None)
texts = [str(w.message) for w in caught if issubclass(w.category, magpolicy.PluginWarning)]
others = [str(w.message) for w in caught if not issubclass(w.category, magpolicy.PluginWarning)]
out = dict(found=found, names=names, handles=handles, schedule=schedule, calls=calls, warnings=texts, others=others)
print(json.dumps(out))
"""
UNDISTURBED = str(magpolicy.simulate("flux", steps=4))


@pytest.fixture
def install(tmp_path):
    """Make a distribution on the path: its metadata, its entry points and its modules."""

    def make(name, modules, entries=None, version="1.2"):
        info = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        info.joinpath("METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
        entries = entries or {module.removesuffix("_plugin"): module for module in modules}
        lines = ["[magpolicy]", *(f"{entry} = {module}" for entry, module in entries.items())]
        info.joinpath("entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        for module, source in modules.items():
            tmp_path.joinpath(f"{module}.py").write_text(textwrap.dedent(source), encoding="utf-8")

    return make


@pytest.fixture
def outcome(tmp_path):
    """Run the program in a process of its own."""

    def run(disable=None, program=PROGRAM):
        env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *(p for p in sys.path if p)])}
        env.pop("MAGPOLICY_DISABLE_PLUGINS", None)
        if disable is not None:
            env["MAGPOLICY_DISABLE_PLUGINS"] = disable
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env, timeout=60)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def check_good(out):
    hooks = ["attach", "on_decision", "on_run_end", "on_run_start", "presets"]
    assert out["found"]["good"] == ["a-guest", "1.2", hooks, None]
    assert out["names"] == ["guest"]
    assert out["handles"][0] == ["handle of the guest", "stack", 3]
    assert "nothing an installed adapter can drive" in out["handles"][1]
    decided = [d.reason for d in magpolicy.simulate("flux", steps=4).decisions[0]]
    assert out["calls"] == ["start", *(["cond", reason] for reason in decided), ["end", 4]]
    assert out["schedule"] == UNDISTURBED
    assert out["others"] == []


def test_a_good_plugin(install, outcome):
    install("a-guest", {"good_plugin": GOOD})
    out = outcome()
    check_good(out)
    assert out["warnings"] == []


def test_its_presets_are_found_by_any_name(install, outcome):
    install("a-guest", {"good_plugin": GOOD})
    program = """
import json, magpolicy
names = [magpolicy.preset(n).name for n in ("guest", "GUEST", "guest/model")]
try:
    magpolicy.preset("gueest")
except magpolicy.PresetError as error:
    names.append(str(error))
print(json.dumps([names, str(magpolicy.simulate("Guest/Model")), len(magpolicy.presets())]))
"""
    names, schedule, count = outcome(program=program)
    assert names[:3] == ["guest"] * 3
    assert "did you mean guest" in names[3]
    assert schedule == "3 steps █··  1 computed  3.00x"
    assert count >= 96


BROKEN = {
    "raises at import": ("raise RuntimeError('it is broken')", "RuntimeError: it is broken"),
    "needs what is not there": ("import a_module_nobody_has", "ModuleNotFoundError"),
    "does not parse": ("def (", "SyntaxError"),
    "calls exit at import": ("raise SystemExit(3)", "SystemExit"),
    "asks for an argument there is not": (
        "import magpolicy\n@magpolicy.hookimpl\ndef on_run_start(session, weather):\n    pass",
        "PluginValidationError",
    ),
    "implements a hook there is not": (
        "import magpolicy\n@magpolicy.hookimpl\ndef on_coffee(session):\n    pass",
        "PluginValidationError",
    ),
}


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("order", ["first", "last"])
def test_a_plugin_that_cannot_be_loaded_is_named_and_the_rest_works(install, outcome, how, order):
    source, problem = BROKEN[how]
    names = ("a-guest", "b-broken") if order == "last" else ("a-guest", "0-broken")
    install(names[0], {"good_plugin": GOOD})
    install(names[1], {"bad_plugin": source})
    out = outcome()
    check_good(out)
    (warning,) = out["warnings"]
    assert f"plugin 'bad' of distribution {names[1]} 1.2 was left out" in warning
    assert problem in warning
    assert "MAGPOLICY_DISABLE_PLUGINS=bad" in warning
    assert problem in out["found"]["bad"][3]
    assert f"bad ({out['found']['bad'][3]})" in out["handles"][1]  # attach says who might have known the object


def test_an_entry_point_without_its_module(install, outcome):
    install("a-guest", {"good_plugin": GOOD})
    install("b-broken", {}, entries={"bad": "no_such_module:plugin"})
    out = outcome()
    check_good(out)
    assert "distribution b-broken 1.2" in out["warnings"][0]


CALLED = {
    "presets": ("def presets():\n    raise KeyError('lost')", "failed in presets: KeyError: 'lost'"),
    "presets that are none": ("def presets():\n    return ['guest2']", "failed in presets: AttributeError"),
    "presets that are nothing": ("def presets():\n    return 5", "failed in presets: TypeError"),
    "presets out of range": (
        "def presets():\n    return [magpolicy.Preset(name='guest2', curve=magpolicy.Curve([1.0]), threshold=-1)]",
        "threshold=-1",
    ),
    "a preset without a curve": (
        "def presets():\n    return [magpolicy.Preset(name='guest2', curve=[1.0])]",
        "failed in presets",
    ),
    "a curve that is none": (
        "def presets():\n    return [magpolicy.Preset(name='guest2', curve=magpolicy.Curve([0.0]))]",
        "ratios[0]",
    ),
    "the start of a run": (
        "def on_run_start(session):\n    raise OSError('disk full')",
        "failed in on_run_start: OSError: disk full",
    ),
    "a decision": ("def on_decision(entry):\n    return 1 / 0", "failed in on_decision: ZeroDivisionError"),
    "the end of a run": ("def on_run_end(session):\n    session.nothing", "failed in on_run_end: AttributeError"),
}


@pytest.mark.parametrize("what", CALLED)
def test_a_plugin_that_fails_when_called_is_named_and_the_rest_works(install, outcome, what):
    source, problem = CALLED[what]
    install("a-guest", {"good_plugin": GOOD})
    install("b-broken", {"bad_plugin": f"import magpolicy\n@magpolicy.hookimpl\n{source}"})
    out = outcome()
    check_good(out)
    assert out["warnings"]
    for warning in out["warnings"]:
        assert "plugin b-broken:bad failed" in warning
        assert problem in warning
        assert warning.endswith("going on without it")


def test_an_adapter_that_fails_says_who_and_on_what(install, outcome):
    install("a-guest", {"good_plugin": GOOD})
    body = "def attach(target):\n    if target != 'guest model':\n        raise KeyError('x')"
    source = f"import magpolicy\n@magpolicy.hookimpl\n{body}"
    install("b-broken", {"bad_plugin": source})
    out = outcome()
    assert out["handles"][0] == ["handle of the guest", "stack", 3]
    assert "plugin b-broken:bad failed on builtins.str: KeyError: 'x'" in out["handles"][1]
    assert out["schedule"] == UNDISTURBED


@pytest.mark.parametrize(
    ("value", "off"),
    [
        ("1", {"good", "other"}),
        ("all", {"good", "other"}),
        ("TRUE", {"good", "other"}),
        ("good", {"good"}),
        ("Good ,", {"good"}),
        ("a-guest", {"good"}),
        ("other,good", {"good", "other"}),
        ("b-guest", {"other"}),
        ("0", set()),
        ("", set()),
        ("torch-less", set()),
    ],
)
def test_plugins_can_be_turned_off(install, outcome, value, off):
    install("a-guest", {"good_plugin": GOOD})
    install("b-guest", {"other_plugin": "import magpolicy\n@magpolicy.hookimpl\ndef on_run_end(session):\n    pass"})
    out = outcome(disable=value)
    assert {name for name, info in out["found"].items() if info[3]} == off
    for name in off:
        assert out["found"][name][3] == f"turned off by MAGPOLICY_DISABLE_PLUGINS={value}"
        assert f"{name} (turned off" in out["handles"][1]
    assert out["warnings"] == []
    assert (out["calls"] is None) == ("good" in off)  # it was not even imported
    assert out["schedule"] == UNDISTURBED
    if "good" not in off:
        check_good(out)


# In this process: plugins registered by hand.


@pytest.fixture
def registered():
    manager, added = magpolicy.manager(), []

    def register(plugin):
        manager.register(plugin)
        added.append(plugin)
        magpolicy.manager()  # what presets() remembers is out of date
        return plugin

    yield register
    for plugin in added:
        manager.unregister(plugin)
    magpolicy.manager()


class Observer:
    def __init__(self, fail=None):
        self.seen, self.fail = [], fail

    def note(self, what):
        self.seen.append(what)
        if self.fail is not None:
            raise self.fail

    @magpolicy.hookimpl
    def on_run_start(self, session):
        self.note(("start", session.active, len(session.trace)))

    @magpolicy.hookimpl
    def on_decision(self, session, entry):
        assert session.trace[-1] is entry
        self.note(entry)

    @magpolicy.hookimpl
    def on_run_end(self, session):
        self.note(("end", session.active, len(session.trace)))


def run(session, streams=("cond",), steps=3):
    with session:
        for _ in range(steps):
            session.decide(list(streams))
            session.commit()
    return session.trace


def a_session():
    return Session([1.0, 1.0, 1.0], threshold=1, max_skips=5, retention=0)


def test_observers_see_the_run_as_it_happens(registered):
    observer = registered(Observer())
    trace = run(a_session(), ["a", "b"])
    assert observer.seen == [("start", True, 0), *trace, ("end", False, 6)]


def test_observers_see_the_end_of_a_run_left_early(registered):
    observer = registered(Observer())
    session = a_session()

    def leave():
        with session:
            session.decide()
            raise InterruptedError

    with pytest.raises(InterruptedError):
        leave()
    assert observer.seen == [("start", True, 0), ("end", False, 0)]
    session.end()
    assert len(observer.seen) == 2  # told once


def test_observers_that_raise_do_not_harm_a_run_nor_each_other(registered):
    expected = run(a_session())
    observers = [registered(Observer(fail)) for fail in (None, ValueError("no"), None)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert run(a_session()) == expected
    assert all(len(observer.seen) == 5 for observer in observers)
    assert len(caught) == 5
    assert {w.category for w in caught} == {PluginWarning}
    assert all("going on without it" in str(w.message) for w in caught)


def test_a_run_in_which_warnings_are_errors_still_ends(registered):
    registered(Observer(ValueError("no")))
    freed = []
    session = a_session()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        session.on_end(lambda: freed.append(True))
        with pytest.raises(PluginWarning):
            session.begin()
        session.end()  # it has not begun
    assert freed == [True]
    assert not session.active


def test_presets_registered_by_hand_do_not_hide_shipped_ones(registered):
    class Guest:
        @magpolicy.hookimpl
        def presets(self):
            return [Preset(name="by-hand", curve=Curve([1.0])), Preset(name="flux.1-dev", curve=Curve([1.0]))]

    registered(Guest())
    assert magpolicy.preset("by-hand").name == "by-hand"
    assert magpolicy.presets()["flux.1-dev"].steps == 28
    assert len(magpolicy.presets()) == len(list(magpolicy.presets()))


def test_presets_are_asked_for_once_and_again_when_a_plugin_comes_or_goes():
    class Guest:
        asked = 0

        @magpolicy.hookimpl
        def presets(self):
            self.asked += 1
            return [Preset(name="late guest", curve=Curve([1.0]))]

    manager, guest = magpolicy.manager(), Guest()
    assert "late guest" not in magpolicy.presets()
    manager.register(guest)
    try:
        assert "late guest" in magpolicy.presets()
        assert magpolicy.preset("Late Guest").steps == 1
        assert guest.asked == 1
    finally:
        manager.unregister(guest)
    assert "late guest" not in magpolicy.presets()


class TestNobodyDrivesIt:
    @pytest.mark.parametrize("target", [None, 5, "model", object()])
    def test_the_error_says_what_would(self, target):
        with pytest.raises(AdapterError, match="nothing an installed adapter can drive") as caught:
            magpolicy.attach(target, preset="flux")
        kind = type(target)
        assert f"target={kind.__module__}.{kind.__qualname__}" in str(caught.value)
        assert "torch.nn.Module" in str(caught.value)

    def test_arguments_are_checked_first(self):
        with pytest.raises(magpolicy.ArgumentError, match="threshold=-1"):
            magpolicy.attach(object(), preset="flux", threshold=-1)


def test_every_hook_is_documented():
    """In the table of docs/how-to/write-a-plugin.md."""
    from magpolicy import hookspecs

    text = (Path(__file__).parents[2] / "docs/how-to/write-a-plugin.md").read_text("utf-8")
    hooks = {name for name, value in vars(hookspecs).items() if hasattr(value, "magpolicy_spec")}
    assert hooks == set(re.findall(r"^\| `(\w+)\(", text, re.MULTILINE))
