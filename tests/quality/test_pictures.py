"""The page of pictures: what it shows is there and small, and drawing it keeps to what a codec and a page take."""

import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("diffusers", reason="the lab compares diffusers models")
pytest.importorskip("skimage", reason="the lab needs the dev extra")

from benchmarks.quality import pictures
from benchmarks.quality.models import MODELS

PAGE = (pictures.FOLDER / "index.md").read_text(encoding="utf-8")


def test_the_page_shows_every_model_at_every_speed_and_its_files_are_there_and_small():
    shown = set(re.findall(r'(?:\]\(|src=")([\w-]+\.(?:webp|mp4))', PAGE))
    assert len(shown) == len(MODELS) * len(pictures.SPEEDS)
    assert shown == {path.name for path in pictures.FOLDER.iterdir()} - {"index.md"}
    assert sum((pictures.FOLDER / name).stat().st_size for name in shown) < 1_500_000


def test_every_picture_says_in_words_what_it_shows():
    described = re.findall(r'!\[(.+?)\]\(|aria-label="(.+?)"', PAGE)
    assert len(described) == len(MODELS) * len(pictures.SPEEDS)
    assert all(len(re.findall(r"\d+\.\d dB", one or other)) == 5 for one, other in described)


@pytest.mark.parametrize("frames", [1, 3])
def test_one_frame_is_a_picture_and_several_are_a_video(frames, tmp_path):
    if frames > 1:
        pytest.importorskip("av", reason="the dev extra is not installed")
    tiles = [(("a row with more words than one line takes",), np.random.rand(2, 5, 7)) for _ in range(3)]
    drawn = [pictures._frame(tiles, 3) for _ in range(frames)]
    path = pictures.save(drawn, tmp_path / "out")
    assert path == Path(tmp_path / ("out.webp" if frames == 1 else "out.mp4"))
    assert path.stat().st_size > 0
    assert all(side % 2 == 0 for side in drawn[0].size)
