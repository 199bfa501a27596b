"""Builds the wheel and the source distribution, and checks what is in them: ``python tools/distributions.py [FOLDER]``.

Both are built from the same sources, the wheel from the unpacked source distribution. What they hold is told by rules, so that
a file left behind by a tool, a folder of a host, or a path of the machine that built them never reaches a user.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[1]
PACKAGES = {
    *("magpolicy", "magpolicy_torch", "magpolicy_diffusers", "magpolicy_comfyui"),
    *("magpolicy_metrics", "magpolicy_vllm_omni", "magpolicy_sglang", "magpolicy_demo"),
}
NEEDED_IN_WHEEL = {
    *(f"{package}/py.typed" for package in PACKAGES),
    *("magpolicy/__init__.pyi", "magpolicy/data/presets.json", "magpolicy/data/semantics.json"),
    "magpolicy_demo/digits/model_index.json",
    "magpolicy_demo/digits/transformer/diffusion_pytorch_model.safetensors",  # why: docs/adr/0013-the-demos-weights.md
}
NEEDED_IN_SDIST = {
    "pyproject.toml",
    "LICENSE",
    "README.md",
    "CHANGELOG.md",
    "constraints.txt",
    "requirements.txt",
    "__init__.py",
}
SUFFIXES = {
    *(".py", ".pyi", ".typed", ".json", ".js", ".css", ".png", ".svg", ".md", ".toml", ".yml", ".txt", ".html", ".sh"),
    *(".safetensors", ".ipynb", ".ini", ".in", ".webp", ".mp4"),
}
LEFT_BEHIND = re.compile(
    r"(^|/)(__pycache__|\.\w+_cache|\.hypothesis|\.venv|site|dist|build|node_modules|comfy|vllm|\.git)(/|$)"
)
OF_A_MACHINE = re.compile(rb"(?<![\w.])/(root|home/(?!user\b|you\b|me\b)\w+|work|Users/(?!you\b|me\b)\w+)/\w+")
LARGEST = {"whl": 5_000_000, "gz": 8_000_000}


def build(folder: Path) -> tuple[Path, Path]:
    """Build both into ``folder``, which must hold no others; returns the wheel and the source distribution."""
    folder.mkdir(parents=True, exist_ok=True)
    if old := [path.name for path in folder.iterdir() if path.suffix in (".whl", ".gz")]:
        raise SystemExit(f"{folder} holds {', '.join(old)} already; remove it, or name another folder")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)], check=True, capture_output=True
    )
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


def wheel_problems(wheel: Path) -> list[str]:
    """What is wrong with the wheel's contents; empty if nothing is."""
    with zipfile.ZipFile(wheel) as archive:
        files = {info.filename: archive.read(info) for info in archive.infolist() if not info.is_dir()}
    inside = {name: text for name, text in files.items() if ".dist-info/" not in name}
    problems = [f"{name} is none of ours" for name in sorted(inside) if name.partition("/")[0] not in PACKAGES]
    problems += [f"{name} is missing" for name in sorted(NEEDED_IN_WHEEL - set(files))]
    if not any(name.endswith(".dist-info/licenses/LICENSE") for name in files):
        problems.append("the licence is missing")
    return problems + _of_any(inside) + _too_large(wheel)


def sdist_problems(sdist: Path) -> list[str]:
    """What is wrong with the source distribution's contents; empty if nothing is."""
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
        problems = [f"{member.name} is no plain file" for member in members if not (member.isfile() or member.isdir())]
        plain = [member for member in members if member.isfile()]
        files = {member.name.partition("/")[2]: archive.extractfile(member).read() for member in plain}  # type: ignore[union-attr]
    problems += [f"{name} is missing" for name in sorted(NEEDED_IN_SDIST - set(files))]
    return problems + _of_any(files) + _too_large(sdist)


def _of_any(files: dict[str, bytes]) -> list[str]:
    problems = [f"{name} was left behind by a tool, or is a host's" for name in sorted(files) if LEFT_BEHIND.search(name)]
    for name, text in sorted(files.items()):
        path = PurePosixPath(name)
        if path.suffix not in SUFFIXES and path.suffix and not name.startswith(("tests/", ".")):
            problems.append(f"{name} has an ending that nothing of ours has; add it to SUFFIXES if it is meant")
        if not name.startswith("tests/") and (found := OF_A_MACHINE.search(text)):
            problems.append(f"{name} names a path of a machine: {found[0].decode()}")
    return problems


def _too_large(path: Path) -> list[str]:
    size, bound = path.stat().st_size, LARGEST[path.suffix[1:]]
    return [f"{path.name} has {size:,} bytes, more than {bound:,}"] if size > bound else []


def main(folder: Path) -> int:
    wheel, sdist = build(folder)
    problems = [f"{wheel.name}: {text}" for text in wheel_problems(wheel)]
    problems += [f"{sdist.name}: {text}" for text in sdist_problems(sdist)]
    print("\n".join(problems) or f"{wheel} and {sdist} hold what they should, and nothing else")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "dist"))
