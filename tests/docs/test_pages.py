"""What the documentation's generator is given, and what it makes of it."""

import importlib.util
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


def module(name):
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_an_example_becomes_a_fenced_block():
    pytest.importorskip("griffe", reason="it is for what a developer installs")
    fenced = module("_examples").fenced
    said = fenced(
        "It doubles.\n\n>>> with double():  # doctest: +SKIP\n...     x\n2\n\nThe order of work::\n\n    a = 1\n    b\n"
    )
    assert said == (
        "It doubles.\n\n```pycon\n>>> with double():\n...     x\n2\n```\n\nThe order of work:\n\n```python\na = 1\nb\n```\n\n"
    )
    assert fenced("plain: text\n\n    indented\n") == "plain: text\n\n    indented\n"


def test_a_page_ends_with_its_words_of_the_glossary():
    pytest.importorskip("mkdocs", reason="it is for what a developer installs")
    hooks = module("_hooks")
    assert len(hooks.terms()) > 20
    assert len({anchor for _, anchor in hooks.terms()}) == len(hooks.terms())
    said = hooks.words_of("<p>Residuals of each <em>stream</em></p><pre>threshold</pre>", "../")
    assert 'href="../reference/glossary.html#residual"' in said
    assert "#stream" in said
    assert "#threshold" not in said, "code is no prose"


@pytest.mark.parametrize(
    "word", ["GGUF", "fp8", "quantized", "CFG", "LPIPS", "enable_cache", "notebook", "cache-dit", "EasyCache"]
)
def test_words_that_people_search_for_stand_in_a_heading_or_on_the_page_of_questions(word):
    assert word in (DOCS / "how-to" / "questions.md").read_text(encoding="utf-8")
