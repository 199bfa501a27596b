"""Every transformer class of the engine: skipped in, or why not, against the page's table and the engine's own registry."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.sampled

PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "use-with-vllm-omni.md"
ROW = re.compile(r"^\| (skips|not run|ends the start|no cache) \| (.*?) \| (.*?) \| (.*?) \|$", re.MULTILINE)
ROWS = [match.groups() for match in ROW.finditer(PAGE.read_text(encoding="utf-8"))]
"""What is done, the classes, their pipelines, what was run or why."""


def _names(cell: str) -> list[str]:
    return re.findall(r"`([\w ()]+)`", cell)


SKIPPED = [name for done, classes, *_ in ROWS if done == "skips" for name in _names(classes)]


@pytest.fixture(scope="module")
def registry(code):
    """The pipelines that the engine serves, by the name of their class."""
    tree = ast.parse((code / "vllm_omni" / "diffusion" / "registry.py").read_text(encoding="utf-8"))
    found = {
        statement.targets[0].id: statement.value
        for statement in tree.body
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)
    }
    models = ast.literal_eval(found["_DIFFUSION_MODELS"])
    return {name for _, _, name in models.values()}, ast.literal_eval(found["_NO_CACHE_ACCELERATION"])


def test_the_page_lists_every_pipeline_of_the_engine(registry):
    pipelines, without_caches = registry
    listed = [name for *_, pipelines, _ in ROWS for name in _names(pipelines)]
    assert sorted(listed) == sorted(pipelines)
    assert {name for done, _, cell, _ in ROWS if done == "no cache" for name in _names(cell)} == without_caches


def test_the_page_says_of_no_class_that_it_skips_which_was_not_run(engine):
    assert sorted(SKIPPED) == sorted(engine.ask("zoo"))


def test_what_is_given_no_timestep_is_taken_for_no_model_that_denoises(engine):
    refused = engine.ask("refused_models")
    listed = [name for done, classes, *_ in ROWS if done == "ends the start" for name in _names(classes)]
    assert sorted(refused) == sorted(listed)


@pytest.mark.parametrize("name", SKIPPED)
def test_a_model_is_skipped_in(engine, name):
    found = engine.ask("model", which=name)
    assert found["same"]  # never skipping
    assert found["mask"] == found["planned"]
    assert found["mask"].count("C") == 6
    assert found["problems"] == []
    assert found["held"] == 0
    assert found["ran"] == [True, False]  # the blocks, where the second step skips
    assert found["off"] < (1e-2 if name == "HiDreamImageTransformer2DModel" else 1e-5)  # that one works in bfloat16 alone
