"""``magpolicy try`` on whole pipelines in folders: FLUX for pictures, Wan for videos, and the demo's own."""

import json
import sys

import numpy as np
import pytest
from needs import needs

torch = pytest.importorskip("torch", reason="the torch extra is not installed")
diffusers = pytest.importorskip("diffusers", reason="the diffusers extra is not installed")
pytest.importorskip("transformers", reason="the diffusers extra is not installed")
pytest.importorskip("click", reason="the cli extra is not installed")
needs("torchmetrics", reason="the evaluate extra is not installed")
imageio = pytest.importorskip("imageio.v3", reason="the evaluate extra is not installed")

from pipes import saved  # noqa: E402

import magpolicy  # noqa: E402
from magpolicy.cli import main  # noqa: E402
from magpolicy_demo import model as demo  # noqa: E402

FLUX = ("--height", 16, "--width", 16, "--set", "max_sequence_length=16")
WAN = ("--height", 32, "--width", 32, "--frames", 5, "--guidance", 3, "--set", "max_sequence_length=16")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The folders of tiny pipelines."""
    folder = tmp_path_factory.mktemp("pipelines")
    return {"flux": saved.flux(folder / "tiny-flux"), "wan": saved.wan(folder / "tiny-wan")}


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs the command in an empty folder; returns exit code, output, and what it says on stderr, other libraries aside."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MAGPOLICY_HOME", str(tmp_path / "home"))

    def command(source, *args):
        code = main(list(map(str, ["try", source, *args])))
        out, err = capsys.readouterr()
        return code, out, "\n".join(line for line in err.splitlines() if line.startswith(("Error", "Stopped", "Usage")))

    return command


def test_pictures_are_compared_with_those_of_the_full_run(run, folders, tmp_path):
    code, out, err = run(folders["flux"], *FLUX, "--steps", 8, "--prompt", "a cat", "--prompt", "a dog", "--seed", 3, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert json.loads((tmp_path / "magpolicy-try" / "results.json").read_text()) == found
    assert [row["run"] for row in found["runs"]] == ["full", "quality", "balanced", "fast"]
    assert all(row["steps"] == 8 and row["seconds"] > 0 for row in found["runs"])
    full, *others = found["runs"]
    assert (full["computed"], full["speedup"], full["psnr"]) == (8, 1.0, None)
    assert [row["computed"] for row in others] == [5, 4, 2]
    assert all(10 < row["psnr"] <= 100 and 0 < row["ssim"] <= 1 for row in others)
    assert others[0]["psnr"] > others[2]["psnr"]
    assert found["attach"] == 'magpolicy.attach(pipe, speedup="balanced")'
    assert "torchvision" in found["missing"]["lpips"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MAGPOLICY_HOME", str(tmp_path / "home"))
        pipe = diffusers.DiffusionPipeline.from_pretrained(folders["flux"])
    pipe.set_progress_bar_config(disable=True)
    say = {
        "prompt": "a dog",
        "num_inference_steps": 8,
        "height": 16,
        "width": 16,
        "max_sequence_length": 16,
        "output_type": "np",
    }
    by_hand = pipe(**say, generator=torch.Generator().manual_seed(4)).images[0]
    written = imageio.imread(tmp_path / "magpolicy-try" / "full" / "2.png")
    assert np.abs(by_hand * 255 - written).max() <= 0.51


def test_its_folders_can_be_evaluated(run, folders, tmp_path, capsys):
    assert run(folders["flux"], *FLUX, "--steps", 8, "--prompt", "a cat", "--speedup", "2.5", "-o", "here")[0] == 0
    assert main(["evaluate", str(tmp_path / "here" / "full"), str(tmp_path / "here" / "2.5x"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    told = json.loads((tmp_path / "here" / "results.json").read_text())["runs"][1]
    assert found["mean"]["psnr"] == pytest.approx(told["psnr"])


def test_a_video_shows_frames(run, folders, tmp_path):
    code, out, err = run(folders["wan"], *WAN, "--steps", 9, "--prompt", "a cat", "--speedup", "fast,1.5", "-o", "film")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split() == ["run", "computed", "seconds", "speedup", "PSNR", "(dB)", "SSIM"]
    assert [line.split()[:4] for line in lines[1:4]] == [
        ["full", "9", "of", "9"], ["fast", "3", "of", "9"], ["1.5x", "6", "of", "9"],
    ]  # fmt: skip
    assert lines[4].startswith("fast: 9 steps █")
    assert lines[-1] == 'to use it: magpolicy.attach(pipe, speedup="fast")'
    assert len(list(imageio.imiter(tmp_path / "film" / "full" / "1.mp4", plugin="pyav"))) == 5
    grid = imageio.imread(tmp_path / "film" / "grid.png")
    assert grid.shape == (5 * (96 + 4) + 4, 190 + 5 * (96 + 4) + 4, 3)
    tiles = [
        [grid[4 + row * 100 : 100 + row * 100, 190 + column * 100 : 286 + column * 100] for column in range(5)]
        for row in range(5)
    ]
    for column in range(5):
        apart = np.abs(tiles[0][column].astype(int) - tiles[1][column])
        assert np.abs(np.minimum(4 * apart, 255) - tiles[2][column]).max() <= 4  # the difference below, rounded
    assert not all((tiles[0][0] == tiles[0][column]).all() for column in range(1, 5))


def test_the_demos_model_is_a_pipeline_in_a_folder(run, tmp_path):
    code, out, err = run(
        demo.PIPELINE, "--trust-remote-code", "--steps", 10, "--prompt", "3 1 4", "--speedup", "balanced", "--json"
    )
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["pipeline"] == "DigitsPipeline"
    assert found["runs"][1]["computed"] == 5
    assert found["runs"][1]["psnr"] > 25
    assert len(list((tmp_path / "magpolicy-try" / "balanced").iterdir())) == 3


def test_what_the_runs_teach_is_kept_unless_told_otherwise(run, folders, tmp_path):
    asked = (folders["flux"], *FLUX, "--steps", 8, "--prompt", "a cat", "--json")
    first = json.loads(run(*asked, "--no-learn")[1])["runs"]
    assert all("prior" in row["by"] for row in first[1:])
    assert not (tmp_path / "home").exists()
    second = json.loads(run(*asked)[1])["runs"]
    assert all("a run in full taught" in row["by"] for row in second[1:])
    assert (tmp_path / "home").exists()
    third = json.loads(run(*asked)[1])["runs"]
    assert [row["psnr"] for row in third] == [row["psnr"] for row in second]
    again = json.loads(run(*asked, "--prompt", "a dog")[1])["runs"]
    assert again[0]["computed"] == 8


def test_without_torchmetrics_the_figures_are_missing_and_nothing_else(run, folders, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.image", None)
    code, out, err = run(folders["flux"], *FLUX, "--steps", 6, "--prompt", "a cat", "--speedup", "balanced")
    assert (code, err) == (0, "")
    assert out.splitlines()[0].split() == ["run", "computed", "seconds", "speedup"]
    assert "PSNR (dB): torchmetrics.functional.image is needed here; pip install 'magpolicy[evaluate]'" in out
    assert (tmp_path / "magpolicy-try" / "grid.png").exists()


def test_code_that_comes_with_weights_is_not_run_unasked(run):
    code, _, err = run(demo.PIPELINE, "--steps", 10)
    assert code == 1
    assert "cannot be loaded by diffusers" in err


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("--speedup", ""), 2, "names no speed"),
        (("--speedup", "quick"), 2, "quick"),
        (("--speedup", "0.5"), 2, "0.5"),
        (("--set", "colour=red"), 2, "colour is no argument of FluxPipeline"),
        (("--set", "max_sequence_length=9000"), 1, "warming up: the pipeline failed"),
    ],
    ids=str,
)
def test_mistakes(run, folders, tmp_path, args, code, message):
    found, _, err = run(folders["flux"], *FLUX, "--steps", 8, "--prompt", "a cat", *args)
    assert found == code
    assert message in err or message in " ".join(err.split())
    assert not (tmp_path / "magpolicy-try").exists()


def test_when_stopped_nothing_is_written(run, folders, tmp_path, monkeypatch):
    calls, forward = [], diffusers.FluxTransformer2DModel.forward

    def stopped(self, *args, **kwargs):
        calls.append(1)
        if len(calls) > 12:
            raise KeyboardInterrupt
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(diffusers.FluxTransformer2DModel, "forward", stopped)
    code, _, err = run(folders["flux"], *FLUX, "--steps", 8, "--prompt", "a cat")
    assert code == 130
    assert "Stopped: nothing is written" in err
    assert not (tmp_path / "magpolicy-try").exists()


def test_progress_is_told_by_the_pipelines_own_bar(folders):
    from magpolicy_diffusers import _side_by_side

    pipe = diffusers.DiffusionPipeline.from_pretrained(folders["flux"])
    told = []
    with _side_by_side._telling(pipe, lambda *step: told.append(step)):
        pipe("a cat", num_inference_steps=4, height=16, width=16, max_sequence_length=16, output_type="latent")
    assert told[-1] == (4, 4)
    assert {step for step, _ in told} >= {1, 2, 3, 4}
    assert "progress_bar" not in vars(pipe)


def test_the_pipeline_is_left_as_it_was(folders):
    from magpolicy_diffusers import _side_by_side

    pipe = diffusers.DiffusionPipeline.from_pretrained(folders["flux"])
    say = {
        "prompt": "a cat",
        "num_inference_steps": 6,
        "height": 16,
        "width": 16,
        "max_sequence_length": 16,
        "output_type": "np",
    }
    found = _side_by_side.side_by_side(pipe, [(say, 0)], {"fast": {"speedup": 3.0}})
    assert [one.name for one in found] == ["full", "fast"]
    with magpolicy.attach(pipe, speedup=2.0):  # nothing is attached any more
        pass
    again = _side_by_side.side_by_side(pipe, [(say, 0)], {}, teach=True)
    assert np.array_equal(again[0].media[0], found[0].media[0])


@pytest.mark.parametrize(
    ("made", "shape"),
    [
        (np.zeros((2, 8, 6, 3)), (1, 8, 6, 3)),
        (np.zeros((2, 8, 6)), (1, 8, 6, 1)),
        (np.zeros((2, 4, 8, 6, 3)), (4, 8, 6, 3)),
        (torch.zeros(2, 3, 8, 6), (1, 8, 6, 3)),
        (torch.zeros(2, 4, 3, 8, 6), (4, 8, 6, 3)),
        ([[np.zeros((8, 6, 3))] * 4] * 2, (4, 8, 6, 3)),
        ([[np.zeros((8, 6), np.uint8)] * 4] * 2, (4, 8, 6, 1)),
        ([np.zeros((8, 6, 4), np.uint8)] * 2, (1, 8, 6, 3)),
    ],
)
def test_whatever_a_pipeline_returns_is_read(made, shape):
    from magpolicy_diffusers import _side_by_side

    found = _side_by_side._media_of((made,), None)
    assert [frames.shape for frames in found] == [shape] * 2


def test_what_makes_no_pictures_is_said():
    from magpolicy_diffusers import _side_by_side

    with pytest.raises(magpolicy.AdapterError, match="returned no pictures"):
        _side_by_side._media_of((torch.zeros(1, 2, 400),), None)
