"""The example scripts run as they are."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the torch extra is not installed")
pytest.importorskip("diffusers", reason="the diffusers extra is not installed")
pytest.importorskip("PIL", reason="the demo extra is not installed")

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["text_to_image", "image_to_image", "video"])
def test_an_example(name, tmp_path):
    picture = tmp_path / "out.png"
    command = [sys.executable, "-W", "ignore", str(EXAMPLES / f"{name}.py"), "--steps", "12", "--output", str(picture)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "reused" in done.stdout
    assert "x measured in the model" in done.stdout
    assert picture.exists() == (name != "video")
