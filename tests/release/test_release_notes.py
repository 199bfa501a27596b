"""A release says what the changelog says of it, and is not made while tag, version and changelog differ."""

import pytest

PROJECT = '[project]\nname = "magpolicy"\nversion = "0.2.0"\n'
CHANGELOG = """# Changelog

## [Unreleased]

## [0.2.0] - 2026-12-01

### Added

- A thing [with](docs/a.md) a link.

## [0.1.0]

The first.
"""


def test_the_notes_are_the_section_of_the_version(tool):
    assert tool("release_notes").notes(PROJECT, CHANGELOG, "v0.2.0") == "### Added\n\n- A thing [with](docs/a.md) a link."


def test_without_a_tag_it_is_what_the_next_release_would_say(tool):
    changelog = CHANGELOG.replace("## [Unreleased]\n", "## [Unreleased]\n\n- Next.\n")
    assert tool("release_notes").notes(PROJECT, changelog) == "- Next."


@pytest.mark.parametrize(
    ("tag", "project", "changelog", "message"),
    [
        ("v0.3.0", PROJECT, CHANGELOG, "the tag is v0.3.0, and pyproject.toml states 0.2.0; tag v0.2.0"),
        ("0.2.0", PROJECT, CHANGELOG, "tag v0.2.0, or change the version first"),
        ("v0.2.0", PROJECT, CHANGELOG.replace(" - 2026-12-01", ""), r"no section '## \[0.2.0\] - YYYY-MM-DD'"),
        ("v0.2.0", PROJECT, CHANGELOG.replace("[0.2.0]", "[0.1.9]"), "rename Unreleased"),
        ("v0.2.0", PROJECT, CHANGELOG.replace("## [Unreleased]\n", "## [Unreleased]\n\n- Late.\n"), "entries under Unreleased"),
        ("v0.2.0", "[project]\n", CHANGELOG, "states no version"),
    ],
)
def test_what_does_not_fit_together_is_told(tool, tag, project, changelog, message):
    release_notes = tool("release_notes")
    with pytest.raises(release_notes.NotReady, match=message):
        release_notes.notes(project, changelog, tag)


def test_the_changelog_of_the_project_can_be_read(tool):
    release_notes = tool("release_notes")
    found = release_notes.sections((release_notes.ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
    assert {"Unreleased", "0.1.0"} <= set(found)


def test_the_version_is_stated_in_one_place(tool):
    import magpolicy

    release_notes = tool("release_notes")
    assert (
        release_notes.stated_version((release_notes.ROOT / "pyproject.toml").read_text(encoding="utf-8"))
        == magpolicy.__version__
    )
