"""What a user who errs is told: the argument, its value and the mend; and what is shown where there is little room."""

import io
import json
import os
import pickle
import re
import subprocess
import sys

import pytest

import magpolicy
from magpolicy import ArgumentError

KNOWN = [
    (magpolicy.attach, {"treshold": 0.1}, "treshold= is no argument of attach; did you mean threshold?"),
    (magpolicy.attach, {"num_inference_steps": 20}, "did you mean steps?"),
    (magpolicy.attach, {"magcache_thresh": 0.1}, "did you mean threshold?"),
    (magpolicy.attach, {"Speedup": 2}, "did you mean speedup?"),
    (magpolicy.simulate, {"K": 2}, "did you mean max_skips?"),
    (magpolicy.plan, {"speed": 2}, "did you mean speedup?"),
    (magpolicy.plan, {"zzzz": 2}, "it has steps, sigmas, speedup"),
    (magpolicy.sweep, {"thresholdz": [0.1]}, "did you mean thresholds?"),
    (magpolicy.trade_off, {"guidence": 5}, "did you mean guidance?"),
    (magpolicy.Session, {"retention_ratio": 0.2}, "did you mean retention?"),
]


@pytest.mark.parametrize(("function", "given", "message"), KNOWN, ids=[f"{f.__name__}-{next(iter(g))}" for f, g, _ in KNOWN])
def test_an_unknown_argument_says_which_was_meant(function, given, message):
    with pytest.raises(ArgumentError) as caught:
        function("flux", **given)
    assert isinstance(caught.value, magpolicy.UnknownArgumentError)
    assert isinstance(caught.value, TypeError)  # as Python's own
    assert function.__name__ in str(caught.value)
    assert isinstance(pickle.loads(pickle.dumps(caught.value)), magpolicy.UnknownArgumentError)
    assert message in str(caught.value)


@pytest.mark.parametrize("function", [magpolicy.attach, magpolicy.plan, magpolicy.simulate])
def test_an_argument_without_its_name_is_said(function):
    with pytest.raises(ArgumentError, match=r"alone without a name, not 'flux\.1-dev'; try \w+='flux\.1-dev'"):
        function("flux", "flux.1-dev")


@pytest.mark.parametrize("function", [magpolicy.attach, magpolicy.plan])
def test_a_number_without_its_name_is_taken_for_a_speed(function):
    with pytest.raises(ArgumentError, match=r"alone without a name, not 2\.0; try speedup=2\.0"):
        function("flux", 2.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: magpolicy.plan("flux", computed=100),
            r"computed=100 is more than the 28 evaluations of the run; try computed=28",
        ),
        (lambda: magpolicy.keep("x"), r"calibration='x' must be a Calibration; try load_calibration"),
        (lambda: magpolicy.simulate([1, "a"]), r"ratios\[1\]='a' must be a number"),
        (lambda: magpolicy.Schedule.from_dict({}), r"'streams' is missing; give what to_dict\(\) returned"),
        (lambda: magpolicy.semantics("offcial/wan2.1"), r"did you mean official/wan2\.1"),
        (lambda: magpolicy.preset("flux.1-dve"), r"did you mean flux\.1-dev"),
        (lambda: magpolicy.preset("sd3"), r"A model needs none: attach\(pipe\) plans"),
        (lambda: magpolicy.simulate("flux", expert_step=3), r"expert_step=3: the model of preset 'flux\.1-dev' has no second"),
        (lambda: magpolicy.plan("flux", speedup=2.0, expert_step=3), r"expert_step=3: the model of preset 'flux\.1-dev'"),
    ],
)
def test_a_mistake_is_told_with_its_mend(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()


def test_two_experts_are_for_models_that_have_them_and_for_ratios_of_ones_own():
    assert magpolicy.simulate("wan2.2-t2v-a14b", steps=20, expert_step=5).mask[5]
    assert magpolicy.simulate([1.0] * 8, threshold=0.5, max_skips=7, retention=0.0, expert_step=5).mask[5]


@pytest.mark.parametrize(("encoding", "strip"), [("utf-8", "█··"), ("cp1252", "#.."), ("ascii", "#.."), ("no such", "#..")])
def test_a_schedule_prints_on_any_console(encoding, strip, monkeypatch):
    class Console(io.StringIO):
        pass

    Console.encoding = encoding
    monkeypatch.setattr(sys, "stdout", Console())
    schedule = magpolicy.Schedule.from_mask([1, 0, 0])
    assert strip in str(schedule)
    assert str(schedule.strip) == f"{schedule.strip}" == strip
    assert schedule.strip == "█··" == "".join(schedule.strip)
    assert json.loads(json.dumps(schedule.strip)) == pickle.loads(pickle.dumps(schedule.strip)) == "█··"


@pytest.mark.parametrize("shown", ["schedule", "schedule.strip", "f'{schedule.strip}'"])
def test_a_process_prints_on_a_console_without_blocks(shown):
    program = f"import magpolicy; schedule = magpolicy.Schedule.from_mask([1, 0, 0]); print({shown})"
    environment = os.environ | {"PYTHONIOENCODING": "cp1252"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert b"#.." in done.stdout


def test_a_notebook_shows_a_schedule_as_a_picture():
    schedule = magpolicy.simulate("wan2.1-t2v-1.3b", steps=6, retention=0.0)
    shown = schedule._repr_html_()
    assert shown.count("<rect") == 12
    assert shown.count("<title>step 0, cond") == 1
    assert [*re.findall("<text[^>]*>(.*?)</text>", shown)] == ["cond", "uncond"]
    assert "<text" not in magpolicy.Schedule.from_mask([1, 0])._repr_html_()
    names = magpolicy.Schedule.from_mask({"<script>": [1, 0], "b": [1, 1]})._repr_html_()
    assert "<script>" not in names
    assert "&lt;script&gt;" in names
    assert len(magpolicy.Schedule.from_mask([1] * 1000)._repr_html_()) < 200_000
