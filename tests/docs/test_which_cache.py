"""The page that compares caches shows the figures of the lab's own page, of one run."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "explanation" / "which-cache-when.md").read_text(encoding="utf-8")
FIGURES = (DOCS / "explanation" / "quality-figures.md").read_text(encoding="utf-8")
MODELS = ("image, Flux class, MNIST, euler", "video, Wan class, moving MNIST, euler", "image, SD3 class, Fashion-MNIST, euler")
ROWS = {
    "**magpolicy**, planned after one run in full": "plan",
    "fewer steps": "fewer steps",
    "MagCache, by `enable_cache`": "diffusers MagCache",
    "FirstBlockCache, by `enable_cache`": "diffusers FirstBlockCache",
    "TaylorSeer, by `enable_cache`": "diffusers TaylorSeer, lite",
    "TaylorSeer, by `enable_cache`, whole blocks": "diffusers TaylorSeer, whole blocks",
    "cache-dit, DBCache": "cache-dit DBCache",
    "cache-dit, DBCache and TaylorSeer": "cache-dit DBCache + TaylorSeer",
    "TeaCache's rule": "TeaCache's rule",
    "EasyCache's rule": "EasyCache's rule",
}


def measured(model, method):
    """PSNR at the largest and the smallest amount of work that the lab's page has, with all work counted."""
    section = FIGURES.split(f"## {model}\n")[1].split("\n## ")[0].split("not counted:")[0]
    row = re.search(rf"^\| {re.escape(method)} \| (.*) \|$", section, re.MULTILINE)
    cells = [] if row is None else [cell.split(" / ")[0].strip() for cell in row[1].split(" | ")]
    return f"{cells[0]} / {cells[-1]}" if cells else "-"


@pytest.mark.parametrize("row", ROWS)
def test_a_row_is_that_of_the_lab(row):
    expected = " | ".join([row, *(measured(model, ROWS[row]) for model in MODELS)])
    assert f"| {expected} |" in PAGE.splitlines(), f"| {expected} |"
