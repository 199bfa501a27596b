"""The page "How the code hangs together" says what is so: its picture is that of the code, its paths and functions exist."""

import ast
import importlib
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "explanation" / "architecture.md"
ROOTS = (ROOT, ROOT / "src", ROOT / "src" / "magpolicy", ROOT / "adapters")


def test_the_picture_is_that_of_the_code():
    pytest.importorskip("grimp", reason="the dev extra is not installed")
    pytest.importorskip("torch", reason="the torch extra is not installed")
    spec = importlib.util.spec_from_file_location("_architecture", ROOT / "docs" / "_architecture.py")
    architecture = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(architecture)
    drawn = architecture.TARGET.read_text(encoding="utf-8")
    assert architecture.drawing() == drawn, "the picture is of other code; run: python docs/_architecture.py"


def test_every_file_and_folder_that_the_page_names_exists():
    names = [name for name in re.findall(r"`([\w./-]+)`", text()) if "/" in name or name.endswith((".py", ".json"))]
    folders = [root / name for root in ROOTS for name in ("magpolicy_diffusers", "magpolicy_comfyui")]
    assert len(names) > 20
    assert not [name for name in names if not any((root / name).exists() for root in (*ROOTS, *folders))]


def text():
    return re.sub(r"^```.*?^```$", "", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def walk():
    """The walk's parts by their headings: lists of a function and its file below the root."""
    parts = {}
    for heading, rows in re.findall(r"^\*\*(.*?)[.:]\*\*\n\n\|.*\n\|.*\n((?:\|.*\n)+)", text(), re.MULTILINE):
        parts[heading] = [re.match(r"\| `([\w.]+)` \| `([\w./]+)` \|", row).groups() for row in rows.splitlines()]
    calls, decides, skips, computes, back = parts.values()
    return {"skipped": calls + decides + skips + back, "computed": calls + decides + computes + back}


@pytest.mark.parametrize("kind", ["skipped", "computed"])
def test_every_function_of_the_walk_exists(kind):
    for function, file in walk()[kind]:
        tree = ast.parse(next(root / file for root in ROOTS if (root / file).exists()).read_text(encoding="utf-8"))
        *outer, name = function.split(".")
        scopes = [n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and [n.name] == outer] if outer else [tree]
        defined = [n for scope in scopes for n in ast.walk(scope) if isinstance(n, ast.FunctionDef) and n.name == name]
        assert defined, f"{file} has no {function}"


def test_a_step_goes_the_way_of_the_walk():
    pytest.importorskip("diffusers", reason="the diffusers extra is not installed")
    from benchmarks.trace_moves import trace_moves

    for kind, moves in trace_moves().items():
        ahead = iter(moves.calls)
        for function, file in walk()[kind]:
            wanted = (f"adapters/{file}" if file.startswith("magpolicy_") else f"src/magpolicy/{file}", function.split(".")[-1])
            assert wanted in ahead, f"a {kind} step does not come to {wanted} at this place of the walk"


@pytest.mark.parametrize("module", ["magpolicy.adapter", "magpolicy_torch.adapter"])
def test_the_reference_describes_every_name_for_adapters(module):
    if module == "magpolicy_torch.adapter":
        pytest.importorskip("torch", reason="the torch extra is not installed")
    reference = (ROOT / "docs" / "reference" / "api.md").read_text(encoding="utf-8")
    assert f"\n::: {module}\n" in reference  # which shows all names of __all__ that have a docstring
    loaded = importlib.import_module(module)
    values = {name: getattr(loaded, name) for name in loaded.__all__}
    # As ruff sorts: constants first.
    assert loaded.__all__ == sorted(loaded.__all__, key=lambda name: (not name.isupper(), name))
    assert not [name for name, value in values.items() if callable(value) and not value.__doc__]
    assert not [name for name in values if name.startswith("_")]
