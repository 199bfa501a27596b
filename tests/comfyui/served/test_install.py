"""Installing as users do: a clone, the installed package with a loader, and what is said when something is missing."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from environments import add_tiny_pack, make_environment, site_packages
from host import Server, Unavailable, serve
from listening import reports, run

import magpolicy

tomllib = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")
pytest.importorskip("torch")
pytest.importorskip("click")
from magpolicy.cli import main  # noqa: E402

REPOSITORY = Path(__file__).parents[3]
NODES = {"MagCache", "MagCacheCalibration", "CompileModel"}
PACKAGES = ("magpolicy", "magpolicy_torch", "magpolicy_comfyui")


@pytest.fixture(scope="module", autouse=True)
def _without_a_path() -> Iterator[None]:
    """What is installed decides here, not what the developer's own path has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTHONPATH", raising=False)
        yield


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has everything but magpolicy."""
    python = make_environment(tmp_path_factory.mktemp("bare") / "venv")
    done = subprocess.run([python, "-c", "import pluggy, torch; import magpolicy"], capture_output=True, text=True, check=False)
    assert done.stderr.endswith("No module named 'magpolicy'\n"), done.stderr
    return python


@contextmanager
def started(base: Path, python: Path) -> Iterator[Server]:
    """ComfyUI, run by ``python``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", str(python))
        patch.delenv("PYTHONPATH", raising=False)
        try:
            with serve(base) as server:
                yield server
        except Unavailable as error:
            pytest.skip(str(error))


def clone(custom_nodes: Path, name: str = "magpolicy") -> Path:
    """What a clone of the repository has, as far as a node pack goes."""
    target = custom_nodes / name
    for part in ("src", "adapters"):
        shutil.copytree(REPOSITORY / part, target / part, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("__init__.py", "pyproject.toml", "requirements.txt"):
        shutil.copy(REPOSITORY / file, target)
    return target


def installed(python: Path, *, version: str = magpolicy.__version__, packages: tuple[str, ...] = PACKAGES) -> None:
    """What pip leaves of magpolicy, as far as importing goes and telling its version."""
    target = site_packages(python)
    for name in packages:
        source = REPOSITORY / ("src" if name == "magpolicy" else "adapters") / name
        shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    info = target / f"magpolicy-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: magpolicy\nVersion: {version}\n", encoding="utf-8")


def preview(server: Server) -> Any:
    return server.post("magpolicy/simulate", {"inputs": {"model_type": "flux"}, "sampler": {"steps": 8}})["text"]


def listed(server: Server) -> set[str]:
    return NODES & set(server.get("object_info"))


# A clone in custom_nodes


def test_a_clone_is_a_node_pack_where_magpolicy_is_not_installed(tmp_path: Path, bare: Path) -> None:
    folder = clone(tmp_path / "custom_nodes", "my magpolicy-main")
    add_tiny_pack(tmp_path)
    with started(tmp_path, bare) as server:
        assert listed(server) == NODES
        assert preview(server) == str(magpolicy.simulate("flux", steps=8))
        scripts = [path for path in server.get("extensions") if path.endswith("magpolicy.js")]
        assert len(scripts) == 1
        entry, heard = run(server, _SAMPLING)
        assert entry["status"]["status_str"] == "success", server.log[-3000:]
        assert (
            reports(heard)["2"]["strip"]
            == magpolicy.simulate("flux", steps=8, threshold=0.24, retention=0.1, max_skips=5).strip
        )
    assert str(folder) in server.log
    assert "IMPORT FAILED: my" not in server.log
    assert "pyproject" not in server.log  # ComfyUI reads it, and complains if it cannot


_SAMPLING = {
    "1": {"class_type": "TinyModel", "inputs": {"kind": "Flux"}},
    "2": {
        "class_type": "MagCache",
        "inputs": {
            "model": ["1", 0], "model_type": "flux", "magcache_thresh": 0.24, "retention_ratio": 0.1, "magcache_K": 5,
            "start_step": 0, "end_step": -1,
        },
    },
    "3": {"class_type": "TinyPrompt", "inputs": {"kind": "Flux", "seed": 1}},
    "4": {"class_type": "TinyLatent", "inputs": {"kind": "Flux"}},
    "5": {
        "class_type": "KSampler",
        "inputs": {
            "model": ["2", 0], "positive": ["3", 0], "negative": ["3", 0], "latent_image": ["4", 0], "seed": 1, "steps": 8,
            "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0,
        },
    },
    "6": {"class_type": "TinyDecode", "inputs": {"samples": ["5", 0]}},
    "7": {"class_type": "PreviewImage", "inputs": {"images": ["6", 0]}},
}  # fmt: skip


def test_a_missing_dependency_gives_the_one_command_to_run(tmp_path: Path) -> None:
    python = make_environment(tmp_path / "venv", without=["pluggy", "cattrs"])
    folder = clone(tmp_path / "custom_nodes")
    last = load_pack(python, folder).stderr.splitlines()[-1]
    requirements = folder / "requirements.txt"
    assert last == f'ImportError: magpolicy needs pluggy, cattrs; run: "{python}" -m pip install -r "{requirements}"'


def test_an_older_installed_magpolicy_is_reported_and_not_mixed_in(tmp_path: Path) -> None:
    python = make_environment(tmp_path / "venv")
    installed(python, version="0.0.9")
    folder = clone(tmp_path / "custom_nodes")
    done = load_pack(python, folder, after=_WHERE)
    told = re.search(
        r"magpolicy 0\.0\.9 is installed in (.+), older than the clone's (\S+); the clone's is used here; (.+)", done.stderr
    )
    assert told, done.stderr
    assert told[2] == magpolicy.__version__
    assert f'run: "{python}" -m pip install --upgrade "{folder}"' in told[3]
    assert all(Path(where).is_relative_to(folder) for where in done.stdout.splitlines())


def test_a_release_candidate_is_older_than_its_release(tmp_path: Path) -> None:
    python = make_environment(tmp_path / "venv")
    candidate = f"{magpolicy.__version__}rc1"
    installed(python, version=candidate)
    folder = clone(tmp_path / "custom_nodes")
    done = load_pack(python, folder, after=_WHERE)
    assert f"magpolicy {candidate} is installed in" in done.stderr
    assert all(Path(where).is_relative_to(folder) for where in done.stdout.splitlines())


def test_an_older_magpolicy_that_runs_already_stops_the_clone(tmp_path: Path) -> None:
    python = make_environment(tmp_path / "venv")
    installed(python, version="0.0.9")
    last = load_pack(python, clone(tmp_path / "custom_nodes"), before="import magpolicy").stderr.splitlines()[-1]
    assert last.startswith("ImportError: magpolicy 0.0.9 is installed in")
    assert "another node pack has loaded it already; to update it, run:" in last


def test_an_installed_magpolicy_as_new_as_the_clone_is_used(tmp_path: Path) -> None:
    python = make_environment(tmp_path / "venv")
    installed(python)
    done = load_pack(python, clone(tmp_path / "custom_nodes"), after=_WHERE)
    assert done.stderr == ""
    assert all(Path(where).is_relative_to(site_packages(python)) for where in done.stdout.splitlines())


def test_outside_comfyui_the_clone_is_not_taken_for_the_package(tmp_path: Path, bare: Path) -> None:
    where = clone(tmp_path, "magpolicy")
    done = subprocess.run([bare, "-c", "import magpolicy"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert f"ImportError: magpolicy is not installed; {where} is its repository" in done.stderr


_WHERE = "import magpolicy, magpolicy_comfyui; print(magpolicy.__file__, magpolicy_comfyui.__file__, sep='\\n')"


def load_pack(python: Path, folder: Path, *, before: str = "", after: str = "") -> subprocess.CompletedProcess[str]:
    """Import ``folder`` as ComfyUI does, in a process that says it is ComfyUI and has none of its modules."""
    code = f"""
import importlib.util, sys, types
sys.modules["folder_paths"] = types.ModuleType("folder_paths")
{before}
spec = importlib.util.spec_from_file_location({str(folder)!r}, {str(folder / "__init__.py")!r})
module = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = module
try:
    spec.loader.exec_module(module)
except ModuleNotFoundError as error:  # what the nodes themselves need
    assert error.name.split(".")[0] in ("server", "comfy", "nodes", "execution"), error
{after}
"""
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)


# The installed package, with a loader


def command(python: Path, *args: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [python, "-m", "magpolicy", "comfyui", *args], capture_output=True, text=True, encoding="utf-8", check=False
    )
    assert done.returncode == code, done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The distribution, built as pip builds it."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps"]
    done = subprocess.run([*pip, str(REPOSITORY), "-w", str(folder)], capture_output=True, text=True, check=False)
    if done.returncode and "hatchling" in done.stderr and "No matching distribution" in done.stderr:
        pytest.skip("the distribution's build tool, hatchling, cannot be fetched")
    assert done.returncode == 0, done.stderr
    return next(folder.glob("magpolicy-*.whl"))


@pytest.mark.slow
def test_pip_and_the_command_install_and_uninstall_leaves_nothing(tmp_path: Path, wheel: Path) -> None:
    python = make_environment(tmp_path / "venv")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True)
    base = tmp_path / "ComfyUI"
    (base / "custom_nodes").mkdir(parents=True)
    loader = base / "custom_nodes" / "magpolicy"

    assert f"installed: {loader}" in command(python, "install", str(base)).stdout
    before = sorted(p.name for p in loader.iterdir())
    assert f"already installed: {loader}" in command(python, "install", str(base / "custom_nodes")).stdout
    assert sorted(p.name for p in loader.iterdir()) == before
    with started(base, python) as server:
        assert listed(server) == NODES
        assert preview(server) == str(magpolicy.simulate("flux", steps=8))
        assert [path for path in server.get("extensions") if path.endswith("magpolicy.js")]
    status = json.loads(command(python, "status", str(base), "--json").stdout)
    assert (status["loader"], status["clones"], status["missing"]) == (str(loader), [], [])

    assert f"removed: {loader}" in command(python, "uninstall", str(base)).stdout
    assert list((base / "custom_nodes").glob("magpolicy*")) == []
    assert "nothing to remove" in command(python, "uninstall", str(base)).stdout
    assert json.loads(command(python, "status", str(base), "--json").stdout)["loader"] is None


Told = Callable[..., tuple[str, str]]


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Told:
    """What `magpolicy comfyui` says on its two outputs."""

    def run(*args: str | Path, code: int = 0) -> tuple[str, str]:
        assert main(["comfyui", *map(str, args)]) == code
        return capsys.readouterr()

    return run


@pytest.mark.parametrize("action", ["install", "uninstall", "status"])
def test_a_wrong_path_is_told(tmp_path: Path, told: Told, action: str) -> None:
    _, said = told(action, tmp_path / "nowhere", code=2)
    assert "is no folder; give ComfyUI's own folder, the one with main.py" in said
    _, said = told(action, tmp_path, code=2)
    assert f"{str(tmp_path)!r} holds no custom_nodes folder" in said
    assert list(tmp_path.iterdir()) == []


def test_a_portable_build_is_found_by_its_own_folder(tmp_path: Path, told: Told) -> None:
    nodes = tmp_path / "ComfyUI" / "custom_nodes"
    nodes.mkdir(parents=True)
    embedded = tmp_path / "python_embeded" / "python.exe"
    embedded.parent.mkdir()
    embedded.touch()
    _, said = told("install", tmp_path)
    assert (nodes / "magpolicy" / "__init__.py").exists()
    assert f'"{embedded}" -m pip install "magpolicy[comfyui]"' in said


def test_a_clone_is_left_alone(tmp_path: Path, told: Told) -> None:
    folder = clone(tmp_path / "custom_nodes")
    assert str(folder) in told("install", tmp_path, code=2)[1]
    out, said = told("uninstall", tmp_path)
    assert "nothing to remove" in out
    assert str(folder) in said
    assert (folder / "__init__.py").exists()


@pytest.mark.parametrize("content", [{"__init__.py": "NODE_CLASS_MAPPINGS = {}"}, {"notes.txt": "mine"}])
def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path, told: Told, content: dict[str, str]) -> None:
    folder = tmp_path / "custom_nodes" / "magpolicy"
    folder.mkdir(parents=True)
    for name, text in content.items():
        (folder / name).write_text(text)
    for action in ("install", "uninstall"):
        assert str(folder) in told(action, tmp_path, code=2)[1]
    assert {p.name: p.read_text() for p in folder.iterdir()} == content


def test_uninstall_keeps_a_strangers_file_beside_the_loader(tmp_path: Path, told: Told) -> None:
    (tmp_path / "custom_nodes").mkdir()
    told("install", tmp_path)
    folder = tmp_path / "custom_nodes" / "magpolicy"
    (folder / "notes.txt").write_text("mine")
    assert "also holds notes.txt" in told("uninstall", tmp_path, code=2)[1]
    assert (folder / "__init__.py").exists()


def test_a_loader_of_another_version_is_renewed(tmp_path: Path, told: Told) -> None:
    (tmp_path / "custom_nodes").mkdir()
    told("install", tmp_path)
    init = tmp_path / "custom_nodes" / "magpolicy" / "__init__.py"
    now = init.read_text()
    init.write_text(now.splitlines()[0] + "\n")
    assert json.loads(told("status", tmp_path, "--json")[0])["loader"] is None
    told("install", tmp_path)
    assert init.read_text() == now


def test_the_loader_says_what_to_run_where_the_package_is_missing(tmp_path: Path, told: Told, bare: Path) -> None:
    (tmp_path / "custom_nodes").mkdir()
    told("install", tmp_path)
    done = load_pack(bare, tmp_path / "custom_nodes" / "magpolicy")
    assert f'run: "{bare}" -m pip install "magpolicy[comfyui]"' in done.stderr.splitlines()[-1]


def test_the_origin_beside_is_mentioned(tmp_path: Path, told: Told) -> None:
    (tmp_path / "custom_nodes" / "ComfyUI-MagCache").mkdir(parents=True)
    assert "ComfyUI-MagCache is here too" in told("install", tmp_path)[1]


# What ComfyUI-Manager reads


def test_requirements_are_those_of_the_distribution() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    of_the_pack = {line for line in extras["comfyui"] if not line.startswith("magpolicy[")}
    wanted = {*project["dependencies"], *extras["files"], *of_the_pack}
    lines = (REPOSITORY / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert {_plain(line) for line in lines if line and not line.startswith("#")} == set(map(_plain, wanted))


def _plain(requirement: str) -> str:
    return requirement.replace(" ", "").replace('"', "'")


def test_comfyui_reads_the_project_file(comfyui: Path) -> None:
    from comfy_config import config_parser

    found = config_parser.extract_node_configuration(str(REPOSITORY))
    assert found is not None
    assert (found.project.name, found.project.version) == ("magpolicy", magpolicy.__version__)
    assert found.tool_comfy.display_name == "MagPolicy"
    assert found.tool_comfy.publisher_id


def test_the_registrys_checks_find_nothing(tmp_path: Path) -> None:
    """What comfy-cli 1.23 looks for before it publishes; the tool itself is run where it is installed."""
    rules = ["check", ".", "-q", "--select", "S102,S307,E702"]
    done = subprocess.run([sys.executable, "-m", "ruff", *rules], cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    if (comfy := shutil.which("comfy")) is None:
        return
    told = subprocess.run(
        [comfy, "--skip-prompt", "node", "validate"], cwd=REPOSITORY, capture_output=True, text=True,
        env={**os.environ, "HOME": str(tmp_path), "DO_NOT_TRACK": "1"}, timeout=120,
    )  # fmt: skip
    assert told.returncode == 0, told.stdout
    assert "Security warnings" not in told.stdout + told.stderr
    assert "All validation checks passed" in told.stdout + told.stderr


@pytest.mark.parametrize("tool", ["cm-cli", "comfy"])
def test_tools_install_from_a_repository(tool: str, tmp_path: Path, comfyui: Path) -> None:
    """ComfyUI-Manager's ``cm-cli``, and ``comfy node install`` of comfy-cli, which calls it, clone it from a loopback address;
    they are run where they are installed."""
    if (found := shutil.which(tool)) is None:
        pytest.skip(f"{tool} is not on the path (comfyui-manager 4.3 and comfy-cli 1.23 were run)")
    host, pages = tmp_path / "ComfyUI", tmp_path / "pages"
    shutil.copytree(comfyui, host, ignore=shutil.ignore_patterns("models", "__pycache__"))
    pages.mkdir()
    git = ["git", "-c", "safe.directory=*"]
    subprocess.run([*git, "init", "-q", host], check=True)
    subprocess.run([*git, "clone", "-q", "--bare", REPOSITORY, pages / "magpolicy.git"], check=True)
    subprocess.run([*git, "-C", pages / "magpolicy.git", "update-server-info"], check=True)
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"]
    with subprocess.Popen(command, cwd=pages, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as served:
        try:
            assert served.stdout is not None
            port = served.stdout.readline().split(" port ")[1].split()[0]
            paths = os.pathsep.join([str(host), *(place for place in sys.path if place.endswith("-packages"))])
            environment = {
                **os.environ,
                "COMFYUI_PATH": str(host),
                "PYTHONPATH": paths,
                "HOME": str(tmp_path),
                "DO_NOT_TRACK": "1",
            }
            address = f"http://127.0.0.1:{port}/magpolicy.git"
            before = [found] if tool == "cm-cli" else [found, "--skip-prompt", "--workspace", str(host), "node"]
            told = subprocess.run(
                [*before, "install", address, "--mode", "local", "--no-deps"], cwd=host, env=environment,
                capture_output=True, text=True, timeout=240,
            )  # fmt: skip
        finally:
            served.terminate()
    assert "Installation was successful" in told.stdout + told.stderr
    assert (host / "custom_nodes" / "magpolicy" / "__init__.py").is_file()
