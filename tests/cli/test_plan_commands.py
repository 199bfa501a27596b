"""``magpolicy plan`` and ``magpolicy compare``: what they print is what the library says."""

import json

import attrs
import numpy as np
import pytest

import magpolicy

pytest.importorskip("click")
pytest.importorskip("rich")
pytest.importorskip("cattrs")


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A calibration's file, and the folder to work in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MAGPOLICY_HOME", str(tmp_path / "home"))
    sigmas = np.linspace(1, 0.05, 20)
    shapes = np.stack([np.ones(20), sigmas, np.sin(5 * sigmas)], axis=1)
    rows = (shapes @ np.random.default_rng(0).normal(size=(3, 24))).reshape(20, 4, 6)
    found = magpolicy.Calibration.from_residuals({"cond": rows, "uncond": rows**2}, sigmas=sigmas.tolist(), window=12)
    found.save("model.json")
    return "model.json"


@pytest.fixture
def run(capfd):
    """Runs a command line and returns its exit code and what it printed."""
    from magpolicy.cli import main

    def command(*args):
        code = main([str(a) for a in args])
        said = capfd.readouterr()
        return code, said.out, said.err

    return command


def test_a_plan_is_printed(model, run):
    code, out, err = run("plan", model, "--steps", "30", "--speedup", "3", "--guidance", "4", "--objective", "gap")
    chosen = magpolicy.plan(model, steps=30, speedup=3, guidance=4, objective="gap")
    assert (code, err) == (0, "")
    first, second = out.splitlines()
    assert first == str(chosen)
    assert f"expected relative error {chosen.rms_error:.3g} rms, {chosen.worst:.3g} at most" in second
    assert second.endswith("residuals forecast")
    assert second.startswith(f"  expected distance {magpolicy.expected_distance(model, chosen, guidance=4):.3g}; ")
    assert run("plan", model, "--speedup", "3", "--forecast", "hold")[1].rstrip().endswith("residuals held")


def test_plans_of_single_streams_are_shown_one_by_one(model, run):
    chosen = magpolicy.plan(model, speedup=3, batched=False)
    assert len(set(chosen.masks)) == 2
    lines = run("plan", model, "--speedup", "3", "--separate")[1].splitlines()
    for line, name, mask in zip(lines[1:3], ("cond  ", "uncond"), chosen.masks, strict=True):
        strip = "".join("█" if computes else "·" for computes in mask)
        assert line == f"  {name}  {strip}  {sum(mask)} computed"


def test_a_plan_is_written_and_exported(model, run, tmp_path):
    chosen = magpolicy.plan(model, computed=7)
    code, out, _ = run("plan", model, "--computed", 7, "--json", "-o", "plan.json")
    assert code == 0
    for text in (out, (tmp_path / "plan.json").read_text()):
        read = magpolicy.Schedule.from_dict(json.loads(text))
        assert (read, read.coefficients) == (chosen, chosen.coefficients)
    assert json.loads(run("plan", model, "--computed", 7, "--export", "cache-dit")[1]) == chosen.export("cache-dit")
    request = json.loads(run("plan", model, "--computed", 7, "--export", "sglang-request")[1])
    assert request == chosen.export("sglang-request")
    lines = run("plan", model, "--computed", 7, "--export", "sglang")[1].splitlines()
    assert dict(line.split("=") for line in lines) == chosen.export("sglang")


def test_a_plan_of_a_published_table(run, model):
    code, out, _ = run("plan", "flux.1-dev", "--speedup", "2")
    assert code == 0
    assert out.startswith(str(magpolicy.plan("flux.1-dev", speedup=2)))


def test_a_calibration_of_ones_own_does_not_hide_the_published_table(model, run):
    before = run("simulate", "flux.1-dev", "--steps", "20")
    found = magpolicy.load_calibration(model)
    mine = attrs.evolve(found, name="mine", aliases=("flux.1-dev",))
    magpolicy.keep(mine)
    assert run("simulate", "flux.1-dev", "--steps", "20") == before
    assert run("sweep", "flux.1-dev", "--steps", "20", "--thresholds", "0.1")[0] == 0
    assert run("plan", "flux.1-dev", "--speedup", "2")[1].startswith(str(magpolicy.plan(mine, speedup=2)))
    code, _, err = run("simulate", "mine")
    assert code == 2
    assert "speedup=2.0" in err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["model.json"], "no target given: pass one of speedup, computed and error"),
        (["model.json", "--speedup", "30"], "--speedup=30 leaves 0 of 20 evaluations"),
        (["model.json", "--computed", "0"], "--computed=0 must be a whole number >= 1"),
        (["model.json", "--speedup", "2", "--objective", "x"], "'x' is not one of 'latent'"),
        (["nothing.json", "--speedup", "2"], "nothing.json cannot be read"),
        (["model.json", "--speedup", "2", "-o", "no/where.json"], "No such file"),
        (["1,1.1,0.9", "--speedup", "2", "--damping", "0.5"], "--damping=0.5 is for --forecast='linear'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(model, run, args, message):
    code, out, err = run("plan", *args)
    assert (code, out) == (2, "")
    assert message in " ".join(err.split())


def test_two_schedules_are_set_side_by_side(model, run):
    rule = "threshold=0.1,max_skips=3,retention=0.2,forecast=calibrated"
    code, out, err = run("compare", model, "speedup=2.5", rule)
    assert (code, err) == (0, "")
    first = magpolicy.plan(model, speedup=2.5)
    second = magpolicy.simulate(model, threshold=0.1, max_skips=3, retention=0.2, forecast="calibrated")
    lines = out.splitlines()
    assert lines[0] == f"first   {first}"
    assert lines[2] == f"second  {second}"
    assert f"{first.worst:.3g} at most" in lines[1]
    assert lines[4] == f"they differ at {sum(a != b for a, b in zip(first.mask, second.mask, strict=True))} of 20 steps"


def test_schedules_in_files_are_compared_by_what_a_calibration_says(model, run, tmp_path):
    run("plan", model, "--computed", 7, "-o", "a.json")
    mask = magpolicy.Schedule.from_mask([i % 3 == 0 for i in range(20)])
    (tmp_path / "b.json").write_text(json.dumps(mask.to_dict()))
    code, out, _ = run("compare", model, "a.json", "b.json", "--json")
    assert code == 0
    found = magpolicy.load_calibration(model)
    for row, schedule in zip(json.loads(out), (magpolicy.plan(found, computed=7), mask), strict=True):
        errors = magpolicy.expected_errors(found, schedule)
        assert row["computed"] == 7
        assert row["distance"] == pytest.approx(magpolicy.expected_distance(found, schedule))
        assert row["errors"] == pytest.approx([max(pair) for pair in zip(*errors.values(), strict=True)], abs=1e-9)
    assert "they compute the same steps" in run("compare", model, "a.json", "computed=7")[1]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["missing.json", "speedup=2"], "missing.json cannot be read"),
        (["speed=2", "speedup=2"], "'speed' in 'speed=2' is not known; use computed, damping"),
        (["speedup=quick", "speedup=2"], "speedup='quick' must be a number"),
        (["threshold=0.1", "speedup=2"], "max_skips=None"),
        (["model.json", "speedup=2"], "model.json holds no schedule"),
    ],
)
def test_what_cannot_be_compared_is_said(model, run, args, message):
    code, out, err = run("compare", model, *args)
    assert (code, out) == (2, "")
    assert message in " ".join(err.split())


def test_pictures(model, run, tmp_path):
    pytest.importorskip("matplotlib")
    for args in (
        ["plan", model, "--speedup", 2, "--plot", "plan.png"],
        ["compare", model, "speedup=2", "computed=4,forecast=hold", "--plot", "both.png"],
    ):
        code, out, _ = run(*args)
        assert code == 0
        assert f"picture: {tmp_path / args[-1]}" in out
        assert (tmp_path / args[-1]).read_bytes().startswith(b"\x89PNG")
    code, _, err = run("plan", model, "--speedup", 2, "--plot", "no/where.png")
    assert code == 2
    assert "--plot" in err


def test_a_calibration_is_shown_as_a_preset(model, run):
    code, out, _ = run("presets", model)
    assert code == 0
    assert "calibration   1 sample, window 12" in out
    assert "gram" not in run("presets", model, "--json")[1]
