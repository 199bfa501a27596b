"""Hooks of the documentation's generator.

- Roles in docstrings (``:class:`magpolicy.Curve```) become links within the page.
- An example that is rendered as a quotation stops the build.
- Each page ends with its words that the glossary explains, as links to it.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

ROLE = re.compile(r":(?:class|func|meth|attr|mod):<code>~?([\w.]+)</code>")

GLOSSARY = Path(__file__).parent / "reference" / "glossary.md"
QUOTED = re.compile(r"<blockquote>\s*<blockquote>")
TERM = re.compile(r"^(?P<words>[^{\n]+) \{ #(?P<anchor>[\w-]+) \}$", re.MULTILINE)
NOT_PROSE = re.compile(r"<(pre|code|h\d|script|style)\b.*?</\1>|<[^>]+>", re.DOTALL)


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Link the roles, and name the words of the glossary at the end."""
    address = page.file.src_uri
    if QUOTED.search(html):
        raise PluginError(f"{address}: an example is rendered as a quotation; see docs/_examples.py")
    html = with_links(html)
    return html if address == "reference/glossary.md" else html + words_of(html, "../" * address.count("/"))


def words_of(html: str, root: str) -> str:
    """The paragraph that ends a page; ``root`` leads from the page to the first folder."""
    prose = NOT_PROSE.sub(" ", html)
    home = f"{root}reference/glossary.html"
    found = [
        f'<a href="{home}#{anchor}">{names[0]}</a>'
        for names, anchor in terms()
        if any(re.search(rf"\b{re.escape(name)}s?\b", prose, re.IGNORECASE) for name in names)
    ]
    end = ": " + ", ".join(found) if found else ""
    return f'\n<p class="words">Words of this page in the <a href="{home}">glossary</a>{end}.</p>\n'


@cache
def terms() -> list[tuple[list[str], str]]:
    """The glossary's terms: their words, and where it explains them."""
    text = GLOSSARY.read_text(encoding="utf-8")
    return [(match["words"].split(", "), match["anchor"]) for match in TERM.finditer(text)]


def with_links(html: str) -> str:
    """Replace each role by its name, linked where this page describes it."""

    def link(match: re.Match[str]) -> str:
        name = match[1]
        home = name if f'id="{name}"' in html else next(iter(re.findall(rf'id="(magpolicy\w*(?:\.\w+)*\.{name})"', html)), None)
        return f'<a href="#{home}"><code>{name}</code></a>' if home else f"<code>{name}</code>"

    return ROLE.sub(link, html)
