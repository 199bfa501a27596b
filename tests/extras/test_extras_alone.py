"""Every page runs with exactly the extras that it names, and every extra works alone."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("packaging", reason="it is for what a developer installs")
torch = pytest.importorskip("torch", reason="the torch extra is not installed")
pytest.importorskip("diffusers", reason="the diffusers extra is not installed")

from environment import ROOT, RUNNER, Environment, own_requirements, with_extras  # noqa: E402

DOCS = ROOT / "docs"
_spec = importlib.util.spec_from_file_location("_address", DOCS / "_address.py")
address = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(address)

HOW_TO = sorted((DOCS / "how-to").glob("*.md"))
RUN = [page for page in HOW_TO if "```python\n" in page.read_text(encoding="utf-8")]
ELSEWHERE = {"migrate-from-comfyui-magcache", "troubleshoot-comfyui", "use-with-comfyui", "questions"}
"""Pages that run nothing and send to others, or whose install has its own tests."""


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Makes each environment once."""
    made: dict[tuple[str, ...], Environment] = {}

    def get(*extras: str) -> Environment:
        if extras not in made:
            made[extras] = with_extras(tmp_path_factory.mktemp("environment"), extras, beside=RUNNER)
        return made[extras]

    return get


def succeeds(environment: Environment, *arguments: object, cwd: Path) -> str:
    done = environment.run(*arguments, cwd=cwd)
    assert done.returncode == 0, f"with {', '.join(environment.distributions)}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("page", [page for page in HOW_TO if page.stem not in ELSEWHERE], ids=lambda page: page.stem)
def test_a_page_names_its_extras_at_its_top(page):
    text = page.read_text(encoding="utf-8")
    extras = address.extras(text)
    assert extras is not None, "no line that installs magpolicy"
    own_requirements(extras)  # raises where there is no such extra
    first = text.find("```python\n")
    assert first == -1 or text.index("magpolicy[") < first, "the page runs something before it says what that needs"


@pytest.mark.sampled
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_a_page_runs_with_exactly_the_extras_it_names(page, environment, tmp_path):
    extras = address.extras(page.read_text(encoding="utf-8"))
    succeeds(environment(*extras), ROOT / "tests" / "docs" / "page_runner.py", page, cwd=tmp_path)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with tiny pipelines, named by their classes."""
    from pipes.saved import flux, wan

    folder = tmp_path_factory.mktemp("saved")
    flux(folder / "FluxPipeline")
    wan(folder / "WanPipeline")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", [ROOT / "README.md", DOCS / "how-to" / "use-with-diffusers.md"], ids=lambda page: page.stem)
def test_pipelines_of_a_page_run_with_exactly_the_extras_it_names(page, environment, saved, tmp_path):
    extras = address.extras(page.read_text(encoding="utf-8"))
    said = succeeds(environment(*extras), Path(__file__).parent / "diffusers_page.py", page, saved, cwd=tmp_path)
    assert "computed" in said


# Commands


@pytest.mark.slow
def test_calibrate_keeps_what_a_later_session_plans_from(environment, saved, tmp_path):
    made = environment("diffusers", "cli")
    size = ("--height", 32, "--width", 32, "--frames", 5, "--set", "max_sequence_length=16")
    command = ("calibrate", saved / "WanPipeline", "--steps", 6, "--prompt", "a fox", *size, "--keep")
    succeeds(made, "-m", "magpolicy", *command, cwd=tmp_path)
    later = f"""
import diffusers, magpolicy

pipe = diffusers.WanPipeline.from_pretrained({str(saved / "WanPipeline")!r})
with magpolicy.attach(pipe, speedup=2.0) as handle:
    pipe("a fox", num_inference_steps=6, height=32, width=32, num_frames=5, max_sequence_length=16)
print(handle.report)
"""
    assert "a plan from calibration" in succeeds(made, "-c", later, cwd=tmp_path)


@pytest.mark.slow
def test_try_and_evaluate(tmp_path_factory, tmp_path):
    lacking = () if importlib.util.find_spec("torchvision") else ("torchvision",)
    folder = tmp_path_factory.mktemp("environment")
    made = with_extras(folder, ("diffusers", "evaluate"), without=lacking)
    digits = ROOT / "examples" / "magpolicy_demo" / "digits"
    options = ("--trust-remote-code", "--prompt", "01", "--steps", 6, "--speedup", 2, "--output", "tried")
    succeeds(made, "-m", "magpolicy", "try", digits, *options, cwd=tmp_path)
    folders = sorted(path for path in (tmp_path / "tried").iterdir() if path.is_dir())
    found = succeeds(made, "-m", "magpolicy", "evaluate", *folders, cwd=tmp_path)
    assert "PSNR" in found


@pytest.mark.slow
def test_the_demo(environment, tmp_path):
    succeeds(environment("demo"), "-m", "magpolicy", "demo", "--steps", 4, "-o", "demo.png", cwd=tmp_path)
    assert (tmp_path / "demo.png").is_file()


def test_an_own_loop_learns_with_torch_alone(environment, tmp_path):
    loop = """
import magpolicy, torch

class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(8, 8)
    def forward(self, x):
        return x + self.linear(x)

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList(Block() for _ in range(3))
    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x

torch.manual_seed(0)
model = Model().eval()
for _ in range(2):
    with torch.no_grad(), magpolicy.attach(model, speedup=2.0, steps=8) as handle, handle.run():
        for _ in range(8):
            with handle.stream("cond"):
                model(torch.ones(1, 4, 8))
print(handle.report)
"""
    assert "taught" in succeeds(environment("torch"), "-W", "error", "-c", loop, cwd=tmp_path)
