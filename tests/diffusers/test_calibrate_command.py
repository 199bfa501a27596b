"""``magpolicy calibrate`` and ``refine`` on a pipeline saved to a folder, text encoder and tokenizer included."""

import functools
import json
import warnings

import pytest

import magpolicy
from magpolicy import Calibration, load_calibration, plan

torch = pytest.importorskip("torch", reason="the torch extra is not installed")
diffusers = pytest.importorskip("diffusers", reason="the diffusers extra is not installed")
pytest.importorskip("transformers", reason="the diffusers extra is not installed")
pytest.importorskip("click", reason="the cli extra is not installed")
pytest.importorskip("cattrs", reason="the files extra is not installed")

from pipes.saved import wan  # noqa: E402

from magpolicy.cli import main  # noqa: E402
from magpolicy_diffusers._calibrate import load  # noqa: E402

STEPS = 6
SIZE = ("--height", 32, "--width", 32, "--frames", 5, "--guidance", 3, "--set", "max_sequence_length=16")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a tiny Wan pipeline that reads its prompts."""
    return wan(tmp_path_factory.mktemp("pipelines") / "tiny-wan")


@pytest.fixture
def run(saved, capsys):
    """Runs the command; returns exit code, output, and what it says on stderr without other libraries' words."""

    def command(*args, source=saved, size=SIZE):
        code = main(list(map(str, ["calibrate", source, *size, *args])))
        out, err = capsys.readouterr()
        said = [line for line in err.splitlines() if line.startswith(("Error", "Stopped", "Usage"))]
        return code, out, "\n".join(said)

    return command


def by_hand(saved, prompt, seed):
    pipe = diffusers.DiffusionPipeline.from_pretrained(saved)
    pipe.set_progress_bar_config(disable=True)
    with magpolicy.attach(pipe, calibrate=True) as handle, torch.inference_mode():
        pipe(
            prompt=prompt, num_inference_steps=STEPS, height=32, width=32, num_frames=5, guidance_scale=3.0,
            max_sequence_length=16, output_type="latent", generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
        return handle.calibration


@pytest.mark.parametrize("ending", ["json", "safetensors"])
def test_prompts_are_measured_and_merged_into_one_file(run, saved, tmp_path, ending):
    if ending == "safetensors":
        pytest.importorskip("safetensors")
    file = tmp_path / f"wan.{ending}"
    code, out, err = run("--steps", STEPS, "--prompt", "a cat", "--prompt", "a dog", "--seed", 5, "-o", file, "--name", "mine")
    assert (code, err) == (0, "")
    assert out.splitlines()[:2] == ["prompt 1 of 2", "prompt 2 of 2"]
    assert f"{STEPS} steps, cond, uncond, window 5" in out
    found = load_calibration(file)
    assert found == Calibration.merge([by_hand(saved, "a cat", 5), by_hand(saved, "a dog", 6)])
    assert found.name == "mine"
    about = found.provenance
    assert (about["samples"], about["guidance"], about["repo"], about["pipeline"]) == (2, 3.0, "tiny-wan", "WanPipeline")
    assert plan(file, steps=10, speedup=2.0).computed == 5


def test_what_was_measured_drives_the_pipeline(run, saved, tmp_path):
    file = tmp_path / "wan.json"
    assert run("--steps", STEPS, "--prompt", "a cat", "-o", file)[0] == 0
    pipe = diffusers.DiffusionPipeline.from_pretrained(saved)
    with magpolicy.attach(pipe, calibration=file, speedup=1.5) as handle:
        pipe(prompt="a dog", num_inference_steps=9, height=32, width=32, num_frames=5, max_sequence_length=16)
        assert handle.report.estimated_speedup >= 1.5


def test_what_is_kept_is_found_by_the_model_in_a_new_session(run, saved, tmp_path, monkeypatch):
    monkeypatch.setenv("MAGPOLICY_HOME", str(tmp_path / "home"))
    code, out, err = run("--steps", STEPS, "--prompt", "a cat", "--keep")
    assert (code, err) == (0, "")
    (kept,) = (tmp_path / "home").iterdir()
    assert out.startswith(f"{kept}: {STEPS} steps")
    assert kept.name.startswith("tiny-wan-")
    pipe = diffusers.DiffusionPipeline.from_pretrained(saved)
    with magpolicy.attach(pipe, speedup=1.5) as handle:
        pipe(prompt="a dog", num_inference_steps=9, height=32, width=32, num_frames=5, max_sequence_length=16)
        assert handle.report.source == f"a plan from calibration {load_calibration(kept).name!r}"
    assert run("--steps", STEPS, "--prompt", "a cat", "--keep", "--name", "mine", "-o", tmp_path / "wan.json")[0] == 0
    assert load_calibration(tmp_path / "wan.json") == magpolicy.preset("mine").calibration


def test_a_library_that_cannot_be_written_is_told_before_the_run(run, tmp_path, monkeypatch):
    (tmp_path / "home").write_text("in the way")
    monkeypatch.setenv("MAGPOLICY_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", lambda *_, **__: pytest.fail("it was loaded"))
    code, _, err = run("--steps", STEPS, "--keep")
    assert code == 2
    assert "cannot be made" in err
    code, _, err = run("--steps", STEPS)
    assert code == 2
    assert "give --keep, or --output FILE" in err


def test_without_a_number_of_steps_it_is_the_pipelines_own(run, tmp_path, monkeypatch):
    own = diffusers.WanPipeline.__call__

    @functools.wraps(own)
    def short(self, *args, num_inference_steps=STEPS, **kwargs):
        return own(self, *args, num_inference_steps=num_inference_steps, **kwargs)

    monkeypatch.setattr(diffusers.WanPipeline, "__call__", short)
    code, out, err = run("--prompt", "a cat", "-o", tmp_path / "wan.json")
    assert (code, err) == (0, "")
    assert f"{STEPS} steps, cond, uncond" in out


@pytest.mark.parametrize(("dtype", "wanted"), [(None, torch.float32), ("bfloat16", torch.bfloat16)])
def test_the_data_type_is_asked_for_by_the_name_that_diffusers_has_for_it(saved, dtype, wanted):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*dtype.*")
        pipe = load(str(saved), dtype=dtype, device="cpu", progress=False)
    assert {pipe.transformer.dtype, pipe.vae.dtype} == {wanted}


@pytest.mark.parametrize(("fault", "code"), [(KeyboardInterrupt, 130), (RuntimeError, 1)])
def test_when_stopped_or_failing_nothing_is_written_and_it_says_how_far_it_got(run, tmp_path, monkeypatch, fault, code):
    calls, forward = [], diffusers.WanTransformer3DModel.forward

    def failing(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 2 * STEPS + 2 * 3 + 1:  # the second prompt, after three steps of two branches
            raise fault("out of luck")
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(diffusers.WanTransformer3DModel, "forward", failing)
    file = tmp_path / "wan.json"
    found, _, err = run("--steps", STEPS, "--prompt", "a cat", "--prompt", "a dog", "-o", file)
    assert found == code
    assert f"prompt 2 of 2 got to step 3 of {STEPS}, and nothing is written" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("--steps", 6, "-o", "x.txt"), 2, "must end in .json or .safetensors"),
        (("--steps", 6, "-o", "/no/such/folder/x.json"), 2, "is no folder"),
        (("--steps", 1, "-o", "x.json"), 2, "--steps"),
        (("--steps", 6, "-o", "x.json", "--set", "colour"), 2, "not of the form NAME=VALUE"),
        (("--steps", 6, "-o", "x.json", "--prompt", "fox", "--set", "colour=red"), 2, "colour is no argument of WanPipeline"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mistakes(run, tmp_path, monkeypatch, args, code, message):
    monkeypatch.chdir(tmp_path)
    found, _, err = run(*args)
    assert found == code
    assert message in err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def refining(run, saved, tmp_path, capsys):
    """Runs ``refine`` with a fresh calibration; returns exit code, output, what it says on stderr, and the file's path."""
    calibration, best = tmp_path / "wan.json", tmp_path / "best.json"
    assert run("--steps", STEPS, "--prompt", "a cat", "-o", calibration)[0] == 0

    def command(*args, prompts=("a cat", "a dog")):
        asked = [word for prompt in prompts for word in ("--prompt", prompt)]
        code = main(list(map(str, ["refine", saved, calibration, *SIZE, "--steps", STEPS, *asked, "-o", best, *args])))
        out, err = capsys.readouterr()
        said = [line for line in err.splitlines() if line.startswith(("Error", "Stopped"))]
        return code, out, "\n".join(said), best

    return command


def test_the_schedule_that_did_best_is_written(refining, saved):
    code, out, err, best = refining("--computed", 3, "--runs", 5, "--seed", 4)
    assert (code, err) == (0, "")
    *runs, last = out.splitlines()
    found = magpolicy.Schedule.from_dict(json.loads(best.read_text()))
    assert found.computed == 3
    assert 2 <= len(runs) <= 5
    assert runs[0].startswith("run 1 of 5  ")
    errors = [float(line.split()[-1]) for line in runs]
    assert last == f"{found}  mean squared error {min(errors):.3g}"
    by_hand = []
    for prompt, seed in (("a cat", 4), ("a dog", 5)):
        pipe = diffusers.DiffusionPipeline.from_pretrained(saved)
        pipe.set_progress_bar_config(disable=True)
        say = {"prompt": prompt, "num_inference_steps": STEPS, "height": 32, "width": 32, "num_frames": 5}
        say |= {"guidance_scale": 3.0, "max_sequence_length": 16, "output_type": "latent"}
        full = pipe(**say, generator=torch.Generator().manual_seed(seed)).frames
        with magpolicy.attach(pipe, schedule=found):
            by_hand.append((pipe(**say, generator=torch.Generator().manual_seed(seed)).frames - full).square().mean())
    assert min(errors) == pytest.approx(float(sum(by_hand)) / 2, rel=0.01)


def test_several_speeds_share_the_runs_and_are_a_list(refining):
    code, out, _, best = refining("--speedup", "quality,2", "--runs", 6, prompts=("a cat",))
    assert code == 0
    few, many = map(magpolicy.Schedule.from_dict, json.loads(best.read_text()))
    assert few.computed <= 3
    assert many.computed <= 4
    assert out.splitlines()[-2].startswith(str(few))


@pytest.mark.parametrize(("fault", "code"), [(KeyboardInterrupt, 130), (RuntimeError, 1)])
def test_a_refinement_that_is_stopped_or_fails_writes_nothing(refining, monkeypatch, fault, code):
    calls, forward = [], diffusers.WanTransformer3DModel.forward

    def failing(self, *args, **kwargs):
        calls.append(1)
        if len(calls) >= 4 * STEPS - 2:  # beyond the full run and the first schedule
            raise fault("out of luck")
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(diffusers.WanTransformer3DModel, "forward", failing)
    found, _, err, best = refining("--computed", 3, "--runs", 5, prompts=("a cat",))
    assert found == code
    assert "nothing is written" in err
    assert not best.exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "give one of them"),
        (("--speedup", 2, "--computed", 3), "give one of them"),
        (("--speedup", 5, "-K", 1), "--speedup=5"),
        (("--speedup", "quick"), "--speedup='quick'"),
        (("--computed", 3, "-o", "x.txt"), "must end in .json"),
        (("--computed", "3,4,5", "--runs", 2), "--runs=2"),
    ],
    ids=str,
)
def test_mistakes_of_a_refinement_are_told_before_the_pipeline_is_loaded(refining, monkeypatch, args, message):
    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", lambda *_, **__: pytest.fail("it was loaded"))
    code, _, err, _ = refining(*args)
    assert code == 2
    assert message in err


def test_what_is_no_pipeline(run, tmp_path):
    found, _, err = run("--steps", 6, "-o", tmp_path / "x.json", source=tmp_path)
    assert found == 1
    assert "cannot be loaded by diffusers" in err
    assert "\n" not in err
