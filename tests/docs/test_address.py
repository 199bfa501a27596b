"""The repository's address stands once, and no page installs magpolicy from anywhere else."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
_spec = importlib.util.spec_from_file_location("_address", ROOT / "docs" / "_address.py")
address = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(address)


@pytest.mark.parametrize("page", address.PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_page_has_no_other_address(page):
    text = page.read_text(encoding="utf-8")
    assert address.written(text) == text, "run: python docs/_address.py"


@pytest.mark.parametrize("page", address.PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_nothing_is_installed_from_where_it_is_not(page):
    """A package index has no magpolicy yet; a name alone could bring a stranger's."""
    for line in page.read_text(encoding="utf-8").splitlines():
        if "pip install" in line and "is needed here" not in line:  # a message is for who has it: pip takes that one's extras
            assert not re.search(r"(?<![\w/])magpolicy(\[[\w,-]+\])?(?=['\"]|\s(?!@)|$)", line), line


def test_the_project_s_links_are_those_of_the_repository():
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]
    assert set(urls) == {"Repository", "Documentation", "Changelog", "Issues"}
    assert all(url.startswith(urls["Repository"]) for url in urls.values())


def test_another_address_reaches_every_command(monkeypatch):
    monkeypatch.setattr(address, "address", lambda: "https://example.org/forge/magpolicy")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    changed = address.written(text)
    assert changed.count("example.org/forge") == text.count("github.com/magpolicy/magpolicy") > 1
