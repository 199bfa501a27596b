"""What a shell is offered where a user asks it to complete a command."""

import pytest

click = pytest.importorskip("click", reason="the cli extra is not installed")

from click.shell_completion import ShellComplete  # noqa: E402

import magpolicy  # noqa: E402
from magpolicy.cli._app import program  # noqa: E402

FILES = [f"{command} " for command in ("simulate", "plan", "sweep", "compare", "presets")]


def offered(line):
    """The words, and the kinds of paths, for the last word of a line."""
    *words, begun = line.split(" ")
    found = ShellComplete(program, {}, "magpolicy", "_MAGPOLICY_COMPLETE").get_completions(words, begun)
    return [item.value for item in found if item.type == "plain"], {item.type for item in found if item.type != "plain"}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("swe", ["sweep"]),
        ("simulate flux.1-k", ["flux.1-kontext-dev", "flux.1-kontext-dev-comfyui"]),
        ("plan flux --speedup ", ["quality", "balanced", "fast"]),
        ("plan flux --speedup b", ["balanced"]),
        ("try org/model --speedup fast,q", ["fast,quality"]),
        ("simulate flux --semantics comfyui/w", [name for name in magpolicy.semantics_names() if name.startswith("comfyui/w")]),
    ],
)
def test_words(line, words):
    assert offered(line)[0] == words


@pytest.mark.parametrize("line", [*FILES, "refine org/model ", "library check ", "library import "])
def test_where_a_file_may_stand_files_are_offered(line):
    assert offered(line + "mine")[1] == {"file"}


@pytest.mark.parametrize("command", ["calibrate", "try", "refine"])
def test_where_a_pipelines_folder_may_stand_folders_are_offered(command):
    assert offered(f"{command} my")[1] == {"dir"}
