"""Tables on a terminal: what is shown fits, and can be read."""

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from magpolicy.cli import _output

WORDS = st.text("abcdefgh", min_size=1, max_size=12)


@st.composite
def tables(draw):
    headers = draw(st.lists(WORDS, min_size=1, max_size=8, unique=True))
    cells = st.text("abcdefgh0123456789-.", max_size=45)
    rows = draw(st.lists(st.lists(cells, min_size=len(headers), max_size=len(headers)), max_size=4))
    return headers, rows, draw(st.sets(st.sampled_from(headers)))


def shown(table, width):
    """The lines of a table on a terminal of so many columns, and the headers that it says are left out."""
    headers, rows, right = table
    screen = io.StringIO()
    there = Console(file=screen, width=width, soft_wrap=True, markup=False, emoji=False, highlight=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_output, "on_terminal", lambda: True)
        patch.setattr(_output, "console", lambda: there)
        _output.say_table(headers, rows, right=right)
    *lines, last = screen.getvalue().splitlines()
    said = re.fullmatch(r"Not shown for want of room: (.*)\. A wider .*", last)
    return (lines, said[1].split(", ")) if said else ([*lines, last], [])


@given(tables(), st.integers(20, 120))
def test_every_column_that_is_shown_has_room(table, width):
    headers, rows, _ = table
    lines, left = shown(table, width)
    assert all(len(line) <= width for line in lines)
    assert [*lines[0].split(), *left] == headers
    whole = len(headers) - len(left) - 1
    for place in range(whole):
        assert all(any(row[place] in line for line in lines) for row in rows)


@given(tables(), st.integers(20, 120))
def test_a_wider_terminal_shows_no_fewer_columns(table, width):
    assert len(shown(table, width + 1)[1]) <= len(shown(table, width)[1])
