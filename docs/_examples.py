"""An extension of Griffe, which reads the docstrings: their examples become fenced blocks, as Markdown wants them.

Markdown takes the ``>>>`` of an example for three quotations within each other, and has no ``::`` before indented code.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

SESSION = re.compile(r"^>>> .*(?:\n(?!$).*)*", re.MULTILINE)
LITERAL = re.compile(r"::\n\n(?P<code>(?: {4}.*(?:\n|$)|\n)+)")
FLAG = re.compile(r"  # doctest: .*$", re.MULTILINE)


def fenced(docstring: str) -> str:
    """``docstring`` with its examples in fenced blocks, and without flags that are for the tests."""
    text = SESSION.sub(lambda match: f"```pycon\n{FLAG.sub('', match[0])}\n```", docstring)
    return LITERAL.sub(lambda match: f":\n\n```python\n{_without_indent(match['code'])}\n```\n\n", text)


def _without_indent(code: str) -> str:
    return re.sub(r"^ {4}", "", code.strip("\n"), flags=re.MULTILINE)


class Examples(griffe.Extension):
    """Rewrites each docstring when it has been read."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for each module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)
