"""Which tests a run leaves out: ``tests/conftest.py`` draws them, and loses none."""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

TESTS = """
import pytest

@pytest.mark.sampled
@pytest.mark.parametrize("case", range(30))
def test_alike(case): ...

@pytest.mark.slow
@pytest.mark.parametrize("case", range(15))
def test_long(case): ...

@pytest.mark.sampled
@pytest.mark.slow
@pytest.mark.parametrize("case", range(30))
def test_both(case): ...

def test_plain(): ...
"""


@pytest.fixture
def drawn(tmp_path):
    shutil.copy(Path(__file__).parents[1] / "conftest.py", tmp_path)
    (tmp_path / "test_it.py").write_text(TESTS)

    def found(**variables):
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MAGPOLICY_", "PYTEST_"))}
        command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-W", "ignore", "-p", "no:randomly"]
        said = subprocess.run(command, env=kept | variables, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        return set(re.findall(r"::(\S+)", said))

    return found


def test_each_runs_in_some_draw_and_all_where_all_are_asked_for(drawn):
    every = drawn(MAGPOLICY_EVERY="1")
    draws = [drawn(MAGPOLICY_DRAW=str(draw)) for draw in range(6)]
    assert set.union(*draws) == every
    assert len(every) == 76
    assert set.intersection(*draws) == {"test_plain", "test_alike[0]"}, "what runs with every commit"
    times = Counter(case.partition("[")[0] for draw in draws for case in draw)
    assert times == {"test_plain": 6, "test_alike": 6 + 29, "test_long": 2 * 15, "test_both": 30}
