"""Which models of the engine ask before they run their blocks: its source against the adapter, and against the page."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

engine = pytest.importorskip("magpolicy_sglang._engine", reason="torch is not installed")
PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "use-with-sglang.md"


@pytest.fixture(scope="module")
def models(code):
    """Every model class that the engine serves as a denoiser, and whether its module calls the three methods."""
    found = {}
    for path in sorted((code / "sglang" / "multimodal_gen" / "runtime" / "models" / "dits").glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        asking = {
            made.name
            for made in tree.body
            if isinstance(made, ast.ClassDef)
            for method in made.body
            if isinstance(method, ast.FunctionDef) and method.name == "forward" and _calls(method, "begin_spectrum_step")
        }
        for statement in tree.body:
            if isinstance(statement, ast.Assign) and getattr(statement.targets[0], "id", "") == "EntryClass":
                names = [node.id for node in ast.walk(statement.value) if isinstance(node, ast.Name)]
                found |= {name: name in asking for name in names}
    return found


def _calls(method: ast.FunctionDef, name: str) -> bool:
    return any(isinstance(node, ast.Attribute) and node.attr == name for node in ast.walk(method))


def test_the_adapter_knows_all_that_ask(models):
    assert {name for name, asks in models.items() if asks} == engine.WITH_SEAM | {"MiniMaxH3DiTModel"}


def test_the_page_lists_every_model_of_the_engine(models):
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    asking = {name for line in lines if line.startswith("| asks ") for name in re.findall(r"`(\w+)`", line)}
    others = {name for line in lines if line.startswith("| computes ") for name in re.findall(r"`(\w+)`", line)}
    assert asking == engine.WITH_SEAM
    assert others == models.keys() - engine.WITH_SEAM
