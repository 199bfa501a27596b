"""Bad arguments: one ArgumentError that names the argument and its value; nothing else leaks. Arrays serve as lists do."""

import re
from decimal import Decimal as Number
from fractions import Fraction

import numpy as np
import pytest

import magpolicy
from magpolicy import (
    ArgumentError,
    Curve,
    MagPolicy,
    Preset,
    RunError,
    Schedule,
    Session,
    attach,
    simulate,
    sweep,
)

RATIOS = [1.0, 1.1, 0.9, 1.05]
SETTINGS = {"threshold": 0.1, "max_skips": 2, "retention": 0.0}
NAN, INF = float("nan"), float("inf")

NUMBERS = {  # argument: values it refuses everywhere
    "threshold": [-1, -1e-9, NAN, INF, -INF, "much", [], [0.1, 0.2], {}, 1j, 10**400, 10**5000, object],
    "max_skips": [-1, 2.5, NAN, INF, "many", "2", [], [2, 3], True, 1j, object],
    "retention": [-0.1, 1.1, 20, NAN, INF, "a fifth", [], 1j, 10**400],
    "start_step": [-1, 1.5, NAN, "first", [], None, True],
    "end_step": [-5, 1.5, NAN, "last", [], True],
    "forced": [5, 0, -1, 1.5, True, [4], [-5], [1.5], [NAN], ["a"], "first", [None], [[1]], [True]],
    "semantics": ["mine", "", 5, [], {}, True, np.array(["diffusers"]), b"diffusers"],
}
ONLY_SIMULATED = {
    "steps": [0, -1, 2.5, NAN, INF, "all", [], True, 10**9, 10**400],
    "sigmas": [[], 1.0, "1", "high", [NAN], [INF], [-1.0], ["a"], [None], [[1.0]], [2.0, 1.0], {}],
    "expert_step": [-1, 1.5, NAN, "half", [], True],
}
ONLY_HERE = {"part": [5, (0,), (0, 5), (2, 2), (3, 1), (-1, 2), (0.5, 2), "ab", (0, "x"), (None, 2), (0, 1, 2), [], True]}


def each(table):
    return [pytest.param(name, value, id=f"{name}={repr_of(value)}") for name, values in table.items() for value in values]


def repr_of(value):
    return repr(value)[:20] if not (isinstance(value, int) and value > 10**20) else "a huge integer"


def refused(name, call, **arguments):
    with pytest.raises(ArgumentError) as caught:
        call(**arguments)
    message = str(caught.value)
    assert type(caught.value) is ArgumentError
    assert re.search(rf"\b{name}\b", message), message
    assert "\n" not in message
    assert len(message) < (2000 if name == "semantics" else 300), message  # semantics: all names are listed
    return message


@pytest.mark.parametrize(("name", "value"), each(NUMBERS))
def test_policy(name, value):
    refused(name, MagPolicy, ratios=RATIOS, **(SETTINGS | {name: value}))


@pytest.mark.parametrize(("name", "value"), each(NUMBERS | ONLY_SIMULATED | ONLY_HERE))
def test_simulate(name, value):
    refused(name, simulate, source=RATIOS, **(SETTINGS | {name: value}))


@pytest.mark.parametrize(("name", "value"), each(NUMBERS | ONLY_SIMULATED))
def test_session(name, value):
    refused(name, Session, source=RATIOS, **(SETTINGS | {name: value}))


@pytest.mark.parametrize(("name", "value"), each(NUMBERS | {"steps": ONLY_SIMULATED["steps"], "expert_step": [-1, "half"]}))
def test_attach(name, value):
    refused(name, attach, target=None, ratios=RATIOS, **({"steps": 4} | SETTINGS | {name: value}))


SWEPT = {
    "threshold": [0.1, None, [-1], ["x"], [NAN], [None]],
    "max_skips": [2, None, [-1], ["x"], [2.5], [None]],
    "retention": [0.1, None, [-1], [2], ["x"], [NAN]],
}


@pytest.mark.parametrize(("name", "value"), each(SWEPT))
def test_sweep(name, value):
    lists = {"thresholds": [0.1], "max_skips": [2], "retentions": [0.1]}
    key = name if name == "max_skips" else f"{name}s"
    refused(f"{name}s?", sweep, source=RATIOS, **(lists | {key: value}))


@pytest.mark.parametrize(
    ("name", "value"),
    each({k: v for k, v in (NUMBERS | ONLY_SIMULATED).items() if k not in ("threshold", "max_skips", "retention")}),
)
def test_what_sweep_shares_with_simulate(name, value):
    refused(name, sweep, source=RATIOS, thresholds=[0.1], max_skips=[2], retentions=[0.1], **{name: value})


SOURCES = [None, 5, 1.5, [], {}, [NAN], [1.0, -1.0], [0.0], ["a"], [None], [[1.0]], {"a": 1.0}, {"a": []},
            {"a": [1.0], "b": []},
           {"a": "123"}, object(), np.ones((2, 2)), np.array(1.0), [1.0] * 100_001, b"123", [10**400],
            {"a": [1.0], "b": [1.0, 1.0]}]  # fmt: skip


@pytest.mark.parametrize("source", SOURCES, ids=lambda value: repr_of(value))
@pytest.mark.parametrize(
    "call",
    [
        lambda source: simulate(source, **SETTINGS),
        lambda source: Session(source, **SETTINGS),
        lambda source: MagPolicy(source, **SETTINGS),
        lambda source: sweep(source, thresholds=[0.1], max_skips=[1], retentions=[0]),
        lambda source: attach(None, ratios=source if source is not None else [], steps=4, **SETTINGS),
    ],
    ids=["simulate", "Session", "MagPolicy", "sweep", "attach"],
)
def test_sources(call, source):
    refused("ratios", call, source=source)


def test_settings_that_ratios_do_not_bring():
    for name in SETTINGS:
        rest = {key: value for key, value in SETTINGS.items() if key != name}
        message = refused(name, simulate, source=RATIOS, **rest)
        assert f"{name}=None" in message
        assert f"try {name}=" in message


def test_the_message_says_argument_value_and_mend():
    assert refused("threshold", simulate, source=RATIOS, **(SETTINGS | {"threshold": -1})) == (
        "threshold=-1 must be >= 0; try 0.06"
    )
    assert refused("retention", simulate, source=RATIOS, **(SETTINGS | {"retention": 20})) == (
        "retention=20 must be from 0 to 1; try 0.2"
    )
    assert refused("max_skips", simulate, source=RATIOS, **(SETTINGS | {"max_skips": 2.5})) == (
        "max_skips=2.5 must be a whole number >= 0; try 3"
    )


def test_steps_and_sigmas_that_disagree():
    for steps in (1, 3, 7):
        assert "contradicts" in refused("steps", simulate, source=RATIOS, steps=steps, sigmas=[1.0, 0.5], **SETTINGS)
    both = simulate(RATIOS, steps=2, sigmas=[1.0, 0.5], **SETTINGS)
    assert simulate(RATIOS, steps=2, sigmas=[1.0, 0.5, 0.0], **SETTINGS) == both  # a scheduler's list ends with 0
    assert simulate(RATIOS, steps=3, sigmas=np.array([1.0, 0.5, 0.0]), **SETTINGS) == both
    assert simulate(RATIOS, steps=2, sigmas=iter([1.0, 0.5, 0.0]), **SETTINGS) == both


def test_noise_levels_far_outside_an_assumed_schedule():
    message = refused("sigmas", simulate, source=RATIOS, sigmas=[999.0, 500.0, 1.0], **SETTINGS)
    assert "Curve(ratios, sigmas=...)" in message


ATTACHED = [
    ({"rule": "published"}, "plan: speedup=2.0"),
    ({"rule": "own"}, "rule='own' is not known; use one of None, 'published'"),
    ({"rule": "published", "speedup": 2.0}, "rule='published' contradicts speedup"),
    ({"threshold": 0.1}, "has no preset, and the rule needs magnitude ratios"),
    ({"ratios": RATIOS, "preset": "flux"}, "preset, ratios given"),
    ({"ratios": RATIOS, "calibrate": True}, "ratios, calibrate given"),
    ({"preset": "no such model"}, "preset='no such model'"),
    ({"preset": "flux", "scope": "block"}, "scope='block'"),
    ({"preset": "flux", "scope": []}, "scope="),
    ({"preset": "flux", "offload": "disk"}, "offload='disk'"),
    ({"preset": "flux", "offload": True}, "offload=True"),
    ({"preset": "flux", "steps": 0}, "steps=0"),
    ({"preset": 5.5}, "preset="),
    ({"preset": []}, "preset="),
    ({"preset": RATIOS}, "preset="),
    ({"curve": RATIOS}, "curve="),
    ({"curve": "flux"}, "curve="),
    ({"schedule": [1, 0, 1]}, "schedule="),
    ({"schedule": "flux"}, "schedule="),
    ({"ratios": "flux"}, "ratios="),
    ({"schedule": Schedule.from_mask([1, 0]), "threshold": 0.1}, "threshold=0.1 contradicts schedule"),
    ({"schedule": Schedule.from_mask([1, 0]), "steps": 3}, "steps=3 contradicts"),
    ({"calibrate": "yes"}, "calibrate='yes'"),
]


@pytest.mark.parametrize(("arguments", "word"), ATTACHED, ids=[repr(a)[:60] for a, _ in ATTACHED])
def test_what_attach_refuses_before_anything_is_patched(arguments, word):
    more = SETTINGS if {"curve", "ratios"} & set(arguments) else {}
    with pytest.raises(ArgumentError, match=re.escape(word)):
        attach(object(), **(more | arguments))


def test_a_session_asked_for_steps_or_streams_there_are_not():
    with Session(RATIOS, **SETTINGS) as session:
        for stream in ([], (), ["a", "a"], ["a", 1, "1"]):
            refused("stream", session.decide, stream=stream)
        for step in ("x", 1.5, NAN, [], True):
            refused("step", session.decide, step=step)
        for step in (4, 10**9):
            with pytest.raises(RunError, match=rf"step={step}"):
                session.decide(step=step)
        session.decide(step=np.int64(1))
        session.commit()
        for step in (0, 1):
            with pytest.raises(RunError, match=rf"step={step}"):
                session.decide(step=step)
        assert session.step() == 2
        assert type(session.trace[0].step) is int
    with pytest.raises(RunError, match="no run is under way"):
        session.decide()
    for step in (-1, 4, 1.5, "x", None):
        refused("step", session.begin, step=step)
    assert not session.active


def test_a_policy_asked_for_steps_there_are_not():
    policy = MagPolicy(RATIOS, **SETTINGS)
    for step in ("x", 1.5, NAN, [], True, -1):
        refused("step", policy.decide, step=step)
        refused("step", policy.reset, step=step)
    refused("step", policy.reset, step=5)
    with pytest.raises(RunError, match="step=4"):
        policy.decide(4)
    policy.decide(np.int32(2))
    with pytest.raises(RunError, match="step=2"):
        policy.decide(2)
    policy.decide()
    with pytest.raises(RunError, match=r"call reset\(\)"):
        policy.decide()


def test_numpy_scalars_and_arrays_serve_as_numbers_and_lists():
    plain = simulate(
        {"cond": RATIOS, "uncond": RATIOS[::-1]}, steps=6, threshold=0.25, max_skips=2, retention=0.25, start_step=1,
        end_step=-1,
        forced=[-1, 2],
    )  # fmt: skip
    arrays = simulate(
        {"cond": np.array(RATIOS), "uncond": np.array(RATIOS)[::-1]}, steps=np.int64(6), threshold=np.float32(0.25),
        max_skips=np.int8(2), retention=np.float16(0.25), start_step=np.uint8(1), end_step=np.int16(-1),
        forced=np.array([-1, 2]),
    )  # fmt: skip
    assert arrays == plain
    assert arrays.modelled == plain.modelled
    assert {type(e) for row in arrays.modelled for e in row} == {float}
    policy = MagPolicy(np.array(RATIOS), forced=np.array([1, 2]), **SETTINGS)
    same = MagPolicy(tuple(RATIOS), forced=(1, 2), **SETTINGS)
    assert [policy.decide() for _ in RATIOS] == [same.decide() for _ in RATIOS]
    assert policy.state_dict() == same.state_dict()
    levels = np.linspace(1, 0.1, 7, dtype=np.float32)
    assert simulate(RATIOS, sigmas=levels, **SETTINGS) == simulate(RATIOS, sigmas=levels.tolist(), **SETTINGS)
    assert Session(RATIOS, sigmas=levels, **SETTINGS).steps == 7
    assert len(sweep(RATIOS, thresholds=np.linspace(0, 1, 5), max_skips=np.arange(3), retentions=np.array([0.1]))) == 15


def test_other_numbers_serve_too():
    odd = simulate(map(Fraction, RATIOS), threshold=Number("0.25"), max_skips=2.0, retention=Fraction(1, 4))
    assert odd == simulate(RATIOS, threshold=0.25, max_skips=2, retention=0.25)


def test_what_can_be_read_only_once_is_read_once():
    once = sweep(RATIOS, thresholds=iter([0.1, 5]), max_skips=iter([1, 2]), retentions=iter([0, 0.1]), forced=iter([2]))
    lists = sweep(RATIOS, thresholds=[0.1, 5], max_skips=[1, 2], retentions=[0, 0.1], forced=[2])
    assert once == lists
    session = Session(iter(RATIOS), forced=iter([2]), **SETTINGS)
    for _ in range(2):
        with session:
            answers = []
            for _ in RATIOS:
                answers.append(session.decide())
                session.commit()
        assert answers[2] is magpolicy.Decision.FORCED


def test_a_preset_of_your_own_may_be_wrong_too():
    for name, value in [("threshold", -1), ("max_skips", 2.5), ("retention", 3)]:
        mine = Preset(name="mine", curve=Curve(RATIOS), **(SETTINGS | {name: value}))
        assert refused(name, simulate, source=mine)


@pytest.mark.parametrize("name", magpolicy.semantics_names())
def test_known_semantics_are_what_they_say(name):
    how = magpolicy.semantics(name)
    assert how.name == name or name == "official/wan2.2"
    assert magpolicy.semantics(how) is how
    assert how.source
    assert simulate(RATIOS, semantics=how, **SETTINGS) == simulate(RATIOS, semantics=name, **SETTINGS)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("comparison", "=="),
        ("retention", "most"),
        ("interpolation", "cubic"),
        ("precision", "float16"),
        ("error", "squared"),
        ("joint", "some"),
        ("initial_skips", 1.5),
        ("ratio_bound", "x"),
        ("single_step", None),
        ("batched", "yes"),
    ],
)
def test_semantics_of_your_own_are_checked(option, value):
    with pytest.raises((ValueError, TypeError), match=option):
        magpolicy.Semantics(**{option: value})
