"""A hook of the documentation's generator: roles in docstrings (``:class:`magpolicy.Curve```) become links within the page."""

from __future__ import annotations

import re
from typing import Any

ROLE = re.compile(r":(?:class|func|meth|attr|mod):<code>~?([\w.]+)</code>")


def on_page_content(html: str, **_: Any) -> str:
    """Replace each role by its name, linked where this page describes it."""

    def link(match: re.Match[str]) -> str:
        name = match[1]
        home = name if f'id="{name}"' in html else next(iter(re.findall(rf'id="(magpolicy\w*(?:\.\w+)*\.{name})"', html)), None)
        return f'<a href="#{home}"><code>{name}</code></a>' if home else f"<code>{name}</code>"

    return ROLE.sub(link, html)
