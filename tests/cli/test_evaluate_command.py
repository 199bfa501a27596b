"""``magpolicy evaluate`` on folders of pictures and videos."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from needs import needs

torch = pytest.importorskip("torch", reason="the torch extra is not installed")
needs("torchmetrics", reason="the evaluate extra is not installed")
pytest.importorskip("av", reason="the evaluate extra is not installed")
pytest.importorskip("click", reason="the cli extra is not installed")
imageio = pytest.importorskip("imageio.v3", reason="the evaluate extra is not installed")

from magpolicy.cli import main  # noqa: E402

SIZE = (32, 48, 3)


def picture(seed, noise=0):
    made = np.random.default_rng(seed).integers(0, 200, SIZE)
    return (made + np.random.default_rng(99).integers(0, noise + 1, SIZE)).astype(np.uint8)


def film(seed, noise=0, frames=9):
    return np.stack([picture(seed + i, noise) for i in range(frames)])


def save(path, value):
    path.parent.mkdir(exist_ok=True)
    video = {"plugin": "pyav", "codec": "libx264", "fps": 8} if path.suffix == ".mp4" else {}
    imageio.imwrite(path, value, **video)


@pytest.fixture
def folders(tmp_path):
    """Two folders with the same files: pictures, one of them equal in both, and a video."""
    for name, noise in (("full", 0), ("fast", 12)):
        save(tmp_path / name / "cat.png", picture(1, noise))
        save(tmp_path / name / "dog.png", picture(2))
        save(tmp_path / name / "waves.mp4", film(3, noise))
    return tmp_path / "full", tmp_path / "fast"


@pytest.fixture
def run(capsys):
    def command(*args):
        code = main(["evaluate", *map(str, args)])
        said = capsys.readouterr()
        return code, said.out, said.err

    return command


def test_files_of_the_same_name_are_compared(run, folders):
    metrics = pytest.importorskip("skimage.metrics")
    code, out, _ = run(*folders, "--json")
    assert code == 0
    found = json.loads(out)
    assert set(found["files"]) == {"cat.png", "dog.png", "waves.mp4"}
    cat, dog, waves = (found["files"][name] for name in ("cat.png", "dog.png", "waves.mp4"))
    one, other = (imageio.imread(folder / "cat.png") for folder in folders)
    gaussian = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "channel_axis": 2, "data_range": 255}
    assert cat["psnr"] == pytest.approx(metrics.peak_signal_noise_ratio(one, other), abs=1e-3)
    assert cat["ssim"] == pytest.approx(metrics.structural_similarity(one, other, **gaussian), abs=1e-3)
    assert (dog["psnr"], dog["ssim"]) == (100.0, pytest.approx(1.0, abs=1e-6))
    assert waves["frames"] == 9
    for name in ("psnr", "ssim"):
        assert found["mean"][name] == pytest.approx((cat[name] + dog[name] + waves[name]) / 3)


def test_a_video_is_the_mean_of_its_frames(run, tmp_path):
    for place, frame in enumerate(film(1, 0)):
        save(tmp_path / "a" / f"{place}.png", frame)
    for place, frame in enumerate(film(1, 12)):
        save(tmp_path / "b" / f"{place}.png", frame)
    imageio.imwrite(tmp_path / "a" / "v.gif", film(5), loop=0)
    imageio.imwrite(tmp_path / "b" / "v.gif", film(5), loop=0)
    found = json.loads(run(tmp_path / "a", tmp_path / "b", "--json")[1])
    assert found["files"]["v.gif"]["frames"] == 9
    assert found["files"]["v.gif"]["psnr"] == 100.0


def test_the_table_has_the_worst_file_and_says_what_is_missing(run, folders):
    code, out, err = run(*folders, "--files")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "3 files, 11 frames"
    assert lines[2].split()[:2] == ["PSNR", "(dB)"]
    assert lines[2].split()[-1] in ("cat.png", "waves.mp4")
    assert any(line.startswith("dog.png") and "100.00" in line for line in lines)
    assert "CLIP score: it needs the prompts; pass --prompts prompts.json" in out


def without_torchvision(tmp_path):
    (tmp_path / "torchvision.py").write_text("raise ModuleNotFoundError('No module', name='torchvision')")
    return tmp_path


def alexnet(tmp_path):
    """A torchvision of which LPIPS gets the layers of AlexNet, with random weights: the trained ones are on the network."""
    (tmp_path / "torchvision-1.0.dist-info").mkdir()
    (tmp_path / "torchvision-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 1.0\n")
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("from . import models, transforms\n")
    (tmp_path / "torchvision" / "transforms.py").touch()
    (tmp_path / "torchvision" / "models.py").write_text("""
import torch
from torch.nn import Conv2d, MaxPool2d, ReLU, Sequential
def __getattr__(name):  # other metrics ask for other networks when they are imported
    if name.startswith("__"):
        raise AttributeError(name)
class AlexNet_Weights:
    DEFAULT = "trained"
def alexnet(weights):
    assert weights == "trained"
    torch.manual_seed(0)
    net = torch.nn.Module()
    net.features = Sequential(
        Conv2d(3, 64, 11, 4, 2), ReLU(), MaxPool2d(3, 2), Conv2d(64, 192, 5, padding=2), ReLU(), MaxPool2d(3, 2),
        Conv2d(192, 384, 3, padding=1), ReLU(), Conv2d(384, 256, 3, padding=1), ReLU(), Conv2d(256, 256, 3, padding=1), ReLU())
    return net
""")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("installed", [True, False])
def test_lpips_is_there_with_torchvision_and_names_the_extra_without(tmp_path, installed):
    for name, noise in (("full", 0), ("fast", 12)):
        big = np.kron(picture(1, noise), np.ones((3, 3, 1), np.uint8))
        save(tmp_path / name / "cat.png", big)
        save(tmp_path / name / "same.png", np.kron(picture(2), np.ones((3, 3, 1), np.uint8)))
    (tmp_path / "site").mkdir()
    site = (alexnet if installed else without_torchvision)(tmp_path / "site")
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(site), *filter(None, sys.path)])}
    folders = [str(tmp_path / name) for name in ("full", "fast")]
    command = [sys.executable, "-W", "ignore", "-m", "magpolicy", "evaluate", *folders, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    if not installed:
        assert found["mean"]["lpips"] is None
        assert found["missing"]["lpips"] == "torchvision is needed here; pip install 'magpolicy[evaluate]'"
        return
    assert "lpips" not in found["missing"]
    assert found["files"]["cat.png"]["lpips"] > found["files"]["same.png"]["lpips"] == 0


@pytest.fixture
def clip(tmp_path):
    """The folder of a tiny CLIP model with random weights."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    small = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    config = transformers.CLIPConfig(
        text_config=small
        | {"vocab_size": 99, "max_position_embeddings": 32, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
        vision_config=small | {"image_size": 32, "patch_size": 8},
        projection_dim=8,
    )
    letters = {letter: place for place, letter in enumerate(["?", "<s>", "</s>", *map(chr, range(32, 127))])}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(letters, unk_token="?"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    reader = transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?", pad_token="?", eos_token="</s>")
    looker = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    torch.manual_seed(0)
    folder = tmp_path / "clip"
    transformers.CLIPModel(config).save_pretrained(folder)
    transformers.CLIPProcessor(image_processor=looker, tokenizer=reader).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_clip_score_judges_both_folders_by_the_prompts(run, folders, clip, tmp_path):
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps({"cat.png": "a cat", "dog": "a dog", "waves": "waves"}))
    code, out, _ = run(*folders, "--prompts", prompts, "--clip", clip, "--json")
    assert code == 0
    found = json.loads(out)
    assert "clip_score" not in found["missing"], found["missing"]
    scores = found["judged"]["clip_score"]
    assert all(-100 <= score <= 100 for score in scores.values())
    assert scores["full"] != scores["cached"]
    assert json.loads(run(folders[0], folders[0], "--prompts", prompts, "--clip", clip, "--json")[1])["judged"][
        "clip_score"
    ] == {
        "full": scores["full"],
        "cached": scores["full"],
    }
    assert "ImageReward is not installed; pip install image-reward" in found["missing"]["image_reward"]
    assert "CLIP score" in run(*folders, "--prompts", prompts, "--clip", clip)[1]


def test_a_clip_model_that_cannot_be_had_is_a_line_not_a_failure(run, folders, tmp_path):
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps({"cat": "a cat", "dog": "a dog", "waves": "waves"}))
    code, out, _ = run(*folders, "--prompts", prompts, "--clip", tmp_path / "nowhere", "--json")
    assert code == 0
    assert "cannot be loaded" in json.loads(out)["missing"]["clip_score"]


class Reward:
    """Stands in for ImageReward, whose weights are on the network: its interface, and a figure that a test can tell."""

    def load(self, name, device):
        assert name == "ImageReward-v1.0"
        print("load checkpoint")  # as the real one does
        return self

    def score(self, prompt, image):
        return len(prompt) + np.asarray(image).mean() / 1000


class Bench:
    """Stands in for VBench, for the same reason."""

    def VBench(self, device, full_info_dir, output_path):
        self.folder = Path(output_path)
        return self

    def evaluate(self, videos_path, name, prompt_list=(), dimension_list=None, mode="vbench_standard"):
        assert mode == "custom_input"
        figures = {dimension: [len(dimension) + ("fast" in videos_path), []] for dimension in dimension_list}
        (self.folder / f"{name}_eval_results.json").write_text(json.dumps(figures))


def test_image_reward_and_vbench_judge_where_they_are_installed(run, folders, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ImageReward", Reward())
    monkeypatch.setitem(sys.modules, "vbench", Bench())
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps({"cat": "a cat", "dog": "a dog", "waves": "waves"}))
    found = json.loads(run(*folders, "--prompts", prompts, "--clip", tmp_path / "nowhere", "--json")[1])
    reward = found["judged"]["image_reward"]
    means = [np.mean([imageio.imread(folder / f"{name}.png").mean() for name in ("cat", "dog")]) for folder in folders]
    assert 5 < reward["full"] < reward["cached"] < 5 + max(means) / 1000 + 0.01
    assert "vbench_motion_smoothness" not in found["judged"]  # not all are videos
    for folder in folders:
        for picture in folder.glob("*.png"):
            picture.unlink()
    found = json.loads(run(*folders, "--json")[1])
    assert found["judged"]["vbench_motion_smoothness"] == {"full": 17.0, "cached": 18.0}
    assert "judged by" in run(*folders)[1]


def test_a_judge_that_fails_leaves_the_other_figures(run, folders, tmp_path, monkeypatch):
    broken = Reward()
    broken.score = lambda prompt, image: 1 / 0
    monkeypatch.setitem(sys.modules, "ImageReward", broken)
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps({"cat": "a cat", "dog": "a dog", "waves": "waves"}))
    found = json.loads(run(*folders, "--prompts", prompts, "--clip", tmp_path / "nowhere", "--json")[1])
    assert found["missing"]["image_reward"] == "it failed: ZeroDivisionError: division by zero"
    assert found["mean"]["psnr"] > 20


def broken(full, fast):
    (fast / "cat.png").write_bytes(b"no picture")


def shorter(full, fast):
    save(fast / "waves.mp4", film(3, frames=7))


def smaller(full, fast):
    save(fast / "dog.png", picture(2)[:16])


def missing(full, fast):
    (fast / "dog.png").unlink()


def added(full, fast):
    save(fast / "bird.png", picture(8))


def empty(full, fast):
    for path in full.iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (broken, "cat.png cannot be read"),
        (shorter, "waves.mp4 has 7 frames, the full run 9"),
        (smaller, "dog.png is 48x16, the full run 48x32"),
        (missing, "fast has no dog.png, which"),
        (added, "full has no bird.png, which"),
        (empty, "full has no pictures or videos; they end in .png"),
    ],
)
def test_what_cannot_be_compared_is_said(run, folders, change, message):
    change(*folders)
    code, out, err = run(*folders)
    assert (code, out) == (2, "")
    assert message in " ".join(err.split())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[1]", "must map file names to prompts"),
        ('{"cat": "a cat"}', "prompts has none for dog.png, waves.mp4"),
    ],
)
def test_prompts_that_are_of_no_use(run, folders, tmp_path, text, message):
    (tmp_path / "prompts.json").write_text(text)
    code, _, err = run(*folders, "--prompts", tmp_path / "prompts.json")
    assert code == 2
    assert message in err


def test_a_folder_that_is_not_there(run, folders):
    code, _, err = run(folders[0], Path("nowhere"))
    assert code == 2
    assert "CACHED_DIR=nowhere is no folder" in err
