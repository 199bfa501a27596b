"""The public names and their signatures are those that were written down."""

import difflib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MEND = (
    "The public interface is other than tests/release/public_api.txt says. If that is meant, run: python tools/public_api.py, "
    "and add a line to CHANGELOG.md under Unreleased that says what changed, and how to move over."
)


def test_the_public_interface_is_the_one_that_was_written_down(tool):
    pytest.importorskip("griffe", reason="the dev extra is not installed")
    public_api = tool("public_api")
    before, now = public_api.TARGET.read_text(encoding="utf-8"), public_api.public_api()
    changes = list(difflib.unified_diff(before.splitlines(), now.splitlines(), "written down", "the code", n=1, lineterm=""))
    assert not changes, "\n".join([MEND, *changes])


def test_every_public_name_is_there():
    """The list is read from the sources; these are the names as Python has them."""
    import magpolicy
    import magpolicy.testing

    listed = (ROOT / "tests" / "release" / "public_api.txt").read_text(encoding="utf-8")
    for package in (magpolicy, magpolicy.testing):
        for name in package.__all__:
            assert any(f"\n{package.__name__}.{name}{end}" in f"\n{listed}" for end in ("\n", "(", " ->", ":")), name
