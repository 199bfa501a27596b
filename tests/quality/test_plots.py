"""The plots of the quality figures: whatever they say can be read on a telephone, and stays what was measured."""

import re

import pytest

pytest.importorskip("diffusers", reason="the lab compares diffusers models")
pytest.importorskip("skimage", reason="the lab needs the dev extra")
pytest.importorskip("matplotlib", reason="the plot extra is not installed")

from benchmarks.quality import report
from benchmarks.quality.sweep import KINDS

TELEPHONE, LEAST = 358, 8.5
"""Pixels of a page's width there, and of the height of a letter's square."""
ROWS = [
    {"method": method, "fraction_all": share, "psnr": 20.0 + place + 40 * share}
    for place, method in enumerate(KINDS)
    for share in (0.1, 0.2, 0.4, 0.6)
]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    path = tmp_path_factory.mktemp("plots") / "quality-drawn.svg"
    report.plot("a model, 28 steps, euler", report.curves(ROWS), path)
    return path


@pytest.mark.parametrize("name", ["drawn", *sorted(path.name for path in report.ASSETS.glob("quality-*.svg"))])
def test_it_can_be_read_on_a_telephone(drawn, name):
    path = drawn if name == "drawn" else report.ASSETS / name
    text = path.read_text(encoding="utf-8")
    width = float(re.search(r'viewBox="0 0 ([\d.]+)', text)[1])
    sizes = {100 * float(scale) for scale in re.findall(r"scale\(([\d.]+) -", text)}
    assert sizes
    assert min(sizes) * TELEPHONE / width >= LEAST
    names = re.findall(r"<!-- (.*?) -->", text[text.index('id="legend_1"') :])
    assert len(names) > 10
    assert set(names) <= set(KINDS)


def test_what_is_drawn_is_the_front_within_the_range_shown():
    found = report.curves([*ROWS, {"method": "plan", "fraction_all": 0.5, "psnr": 21.0}])
    assert list(found) == list(KINDS)
    assert found["plan"] == ([0.2, 0.4, 0.6], [28.0, 36.0, 44.0])
