"""The documentation says what is so: its examples run, its tables hold the shipped data, its reference lists every name.

What runs, and how a block says so: ``page_runner.py``.
"""

import contextlib
import importlib.util
import inspect
import json
import re
import sys
from collections import Counter

import attrs
import pytest
from page_runner import FENCE, ROOT, run_page

import magpolicy

PAGES = [ROOT / "README.md", ROOT / "examples" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SEMANTICS = json.loads((ROOT / "src/magpolicy/data/semantics.json").read_text(encoding="utf-8"))["semantics"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_examples_of_a_page_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = page.read_text(encoding="utf-8")
    for module, extra in (
        ("torch", "torch"),
        ("diffusers", "diffusers"),
        ("cattrs", "files"),
        ("click", "cli"),
        ("matplotlib", "plot"),
        ("prometheus_client", "metrics"),
    ):
        if needs(module, text):
            pytest.importorskip(module, reason=f"the page uses the {extra} extra, which is not installed")
    with undone():
        run_page(page)


@contextlib.contextmanager
def undone():
    """Take back what a page does to the process: plugins registered, gradients turned off."""
    before = magpolicy.manager().get_plugins()
    try:
        yield
    finally:
        for plugin in magpolicy.manager().get_plugins() - before:
            magpolicy.manager().unregister(plugin)
        magpolicy.manager()  # forgets the presets of plugins that are gone
        if "torch" in sys.modules:
            sys.modules["torch"].set_grad_enabled(True)


def needs(module, text):
    marks = {
        "torch": ("import torch",),
        "diffusers": ("import diffusers\n",),
        "cattrs": ("load_preset(", ".json", ".toml"),
        "click": ("$ magpolicy",),
        "matplotlib": (".plot(", "--plot"),
        "prometheus_client": ("import prometheus_client",),
    }
    code = "".join(match["source"] for match in FENCE.finditer(text))
    return any(mark in code for mark in marks[module])


def test_the_readme_shows_the_picture_and_the_two_commands_first():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    places = [
        text.index(part)
        for part in ("](docs/assets/demo.png)", "\nmake demo", "\nmake test", 'pip install "magpolicy[', "```python")
    ]
    assert places == sorted(places)


def table_rows(page, first):
    """Rows of the table whose first column is headed ``first``, as lists of cells."""
    lines = (ROOT / "docs" / page).read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return rows


def options_that_differ(semantics):
    own, words = magpolicy.semantics(), ("name", "source", "notes")
    names = (a.name for a in attrs.fields(magpolicy.Semantics) if a.name not in words)
    return [f"{n}={getattr(semantics, n)!r}" for n in names if getattr(semantics, n) != getattr(own, n)]


def semantics_row(name):
    semantics, row = magpolicy.semantics(name), SEMANTICS[name]
    repository, _, file = semantics.source.partition(" ")
    source = f"{repository} `{file}`" if file else repository
    options = ", ".join(f"`{option}`" for option in options_that_differ(semantics))
    return [f"`{name}`", options or "none", source, row.get("notes", "")]


@pytest.mark.parametrize("name", [name for name in magpolicy.semantics_names() if name != "magpolicy"])
def test_the_table_of_semantics_holds_the_shipped_row(name):
    found = {row[0]: row for row in table_rows("reference/semantics.md", "semantics")}
    expected = semantics_row(name)
    assert found.get(f"`{name}`") == expected, "expected | " + " | ".join(expected) + " |"


def test_the_table_of_semantics_has_no_other_rows():
    found = [row[0].strip("`") for row in table_rows("reference/semantics.md", "semantics")]
    assert found == [name for name in magpolicy.semantics_names() if name != "magpolicy"]


def test_the_table_of_options_holds_every_option_and_our_choice():
    found = {row[0].strip("`"): row[1].strip("`") for row in table_rows("reference/semantics.md", "option")}
    own, words = magpolicy.semantics(), ("name", "source", "notes")
    assert found == {a.name: repr(getattr(own, a.name)) for a in attrs.fields(magpolicy.Semantics) if a.name not in words}


def test_the_recommended_settings_are_those_of_the_presets():
    rows = table_rows("reference/presets.md", "preset")
    assert len(rows) >= 11
    for name, threshold, retention, max_skips, steps, streams in rows:
        preset = magpolicy.presets()[name.strip("`")]
        found = (float(threshold), float(retention), int(max_skips), int(steps), int(streams))
        assert found == (preset.threshold, preset.retention, preset.max_skips, preset.steps, len(preset.curve.streams)), name


def test_presets_are_counted_by_family():
    shipped = [preset for preset in magpolicy.presets().values() if "repo" in preset.source]
    found = {row[0].strip("`"): int(row[1]) for row in table_rows("reference/presets.md", "family")}
    assert found == dict(Counter(preset.family for preset in shipped))


@pytest.mark.parametrize("module", ["magpolicy", "magpolicy.testing", "magpolicy_torch", "magpolicy_metrics"])
def test_the_reference_lists_every_public_name(module):
    if module == "magpolicy_torch":
        pytest.importorskip("torch", reason="the torch extra is not installed")
    names = {name for name in __import__(module, fromlist=["__all__"]).__all__ if not name.startswith("__")}
    listed = re.findall(
        rf"^::: {re.escape(module)}\.(\w+)$", (ROOT / "docs/reference/api.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(listed) == len(set(listed))
    assert names <= set(listed), f"missing: {names - set(listed)}"


def test_the_command_line_page_lists_every_option():
    pytest.importorskip("click", reason="the cli extra is not installed")
    from magpolicy.cli._app import program

    text = (ROOT / "docs/reference/cli.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    assert sections.keys() == program.commands.keys()
    for name, command in program.commands.items():
        options = {o for p in command.params if p.param_type_name == "option" for o in (*p.opts, *p.secondary_opts)}
        rows = [line.split(" | ")[0] for line in sections[name].splitlines() if line.startswith("| `-")]
        assert set(re.findall(r"`(--?[\w-]+)", " ".join(rows))) == options, name


def test_the_tables_of_options_are_those_of_the_program():
    pytest.importorskip("click", reason="the cli extra is not installed")
    spec = importlib.util.spec_from_file_location("_cli", ROOT / "docs" / "_cli.py")
    cli = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(cli)
    written = cli.PAGE.read_text(encoding="utf-8")
    assert cli.page(written) == written, "run: python docs/_cli.py"


def test_the_table_of_keys_lists_every_key_of_a_preset_file():
    from magpolicy.catalog._file import _File

    assert {row[0].strip("`") for row in table_rows("how-to/add-a-preset.md", "key")} == {a.name for a in attrs.fields(_File)}


def test_the_table_of_errors_lists_every_error():
    found = {row[0].strip("`") for row in table_rows("reference/errors.md", "class")}
    raised = (Exception, Warning)
    assert found == {n for n in magpolicy.__all__ if isinstance(v := getattr(magpolicy, n), type) and issubclass(v, raised)}


def test_every_reason_is_explained():
    found = {row[0].strip("`") for row in table_rows("explanation/the-rule.md", "reason")}
    assert found == {decision.reason for decision in magpolicy.Decision}


def test_the_table_of_hooks_lists_every_hook():
    from magpolicy import hookspecs

    hooks = {name: function for name, function in vars(hookspecs).items() if hasattr(function, "magpolicy_spec")}
    expected = [f"`{name}({', '.join(inspect.signature(hook).parameters)})`" for name, hook in hooks.items()]
    assert [row[0] for row in table_rows("how-to/write-a-plugin.md", "hook")] == expected
    listed = re.findall(r"members: \[(.*)\]", (ROOT / "docs/reference/api.md").read_text(encoding="utf-8"))[0]
    assert listed.split(", ") == list(hooks)


def test_figures_about_the_shipped_data_are_those_of_the_data():
    presets = sum("repo" in preset.source for preset in magpolicy.presets().values())
    record = json.loads((ROOT / "tests/data/reference_decisions.json").read_text(encoding="utf-8"))
    cases, implementations = f"{len(record['cases']):,} cases", f"{len(record['implementations'])}"
    for page, figures in {
        "README.md": [f"{presets} published calibrations", f"{implementations} published implementations"],
        "docs/reference/presets.md": [f"{presets} published tables"],
        "docs/reference/semantics.md": [f"{cases} of {implementations} implementations"],
        "docs/adr/0002-semantics-are-data.md": [cases, f"{implementations}\nimplementations"],
    }.items():
        text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
        assert all(" ".join(figure.split()) in text for figure in figures), f"{page}: {figures}"
