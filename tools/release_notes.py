"""The notes of a release, from the changelog: ``python tools/release_notes.py [--tag v0.1.0]``.

With a tag, it fails unless the tag is the version that ``pyproject.toml`` states, and the changelog has a dated section for it
with nothing left under *Unreleased*. Without one, it prints what the next release would say.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
STATED = re.compile(r'^name = "magpolicy"\nversion = "([^"]+)"$', re.MULTILINE)  # as src/magpolicy/_version.py reads it
HEADING = re.compile(r"^## \[(?P<name>[^\]]+)\](?: - (?P<date>\d{4}-\d\d-\d\d))?$", re.MULTILINE)


class NotReady(Exception):
    """The release cannot be made yet; the message says what to do."""


def stated_version(project: str) -> str:
    found = STATED.search(project)
    if found is None:
        raise NotReady("pyproject.toml states no version right behind the name")
    return found[1]


def sections(changelog: str) -> dict[str, tuple[str | None, str]]:
    """The date and the text of each section, by its name."""
    heads = list(HEADING.finditer(changelog))
    ends = [head.start() for head in heads[1:]] + [len(changelog)]
    return {head["name"]: (head["date"], changelog[head.end() : end].strip()) for head, end in zip(heads, ends, strict=True)}


def notes(project: str, changelog: str, tag: str | None = None) -> str:
    """What the release says of itself.

    Raises:
        NotReady: tag, version and changelog do not fit together.
    """
    found, version = sections(changelog), stated_version(project)
    if tag is None:
        return found["Unreleased"][1] if "Unreleased" in found else ""
    if tag != f"v{version}":
        raise NotReady(f"the tag is {tag}, and pyproject.toml states {version}; tag v{version}, or change the version first")
    date, text = found.get(version, (None, ""))
    if not text or date is None:
        raise NotReady(f"CHANGELOG.md has no section '## [{version}] - YYYY-MM-DD'; rename Unreleased, and begin a new one")
    if found.get("Unreleased", (None, ""))[1]:
        raise NotReady(f"CHANGELOG.md has entries under Unreleased; they belong to {version}")
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description="Print the notes of a release.")
    parser.add_argument("--tag", default=None, help="the tag of the release, such as v0.1.0")
    tag = parser.parse_args().tag or None
    try:
        print(
            notes(
                (ROOT / "pyproject.toml").read_text(encoding="utf-8"), (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), tag
            )
        )
    except NotReady as problem:
        print(problem, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
