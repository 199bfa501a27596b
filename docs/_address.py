"""The repository's address stands once, in ``pyproject.toml`` (project.urls, Repository); this writes it into every page.

``python docs/_address.py`` after a change of it. A test holds that no page has another one.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
INSTALL = re.compile(r"(?<=magpolicy)(?P<extras>\[[\w,-]+\])? @ git\+(?P<address>[^\"'\s]+)")
CLONE = re.compile(r"(?<=git clone )(?P<address>https://\S+/magpolicy)\b")
NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))
PAGES = [ROOT / "README.md", ROOT / "examples" / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *NOTEBOOKS]


def address() -> str:
    """The repository's address."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]


def written(text: str) -> str:
    """``text`` with the repository's address wherever it installs or clones magpolicy."""
    text = INSTALL.sub(lambda match: f"{match['extras'] or ''} @ git+{address()}", text)
    return CLONE.sub(address(), text)


def extras(text: str) -> tuple[str, ...] | None:
    """The extras that the first install command of a page names; ``None`` if there is no such command."""
    match = INSTALL.search(text)
    if match is None:
        return None
    return tuple(match["extras"].strip("[]").split(",")) if match["extras"] else ()


if __name__ == "__main__":
    for page in PAGES:
        before = page.read_text(encoding="utf-8")
        if written(before) != before:
            page.write_text(written(before), encoding="utf-8")
            print(page.relative_to(ROOT))
