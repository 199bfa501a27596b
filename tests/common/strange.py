"""Strange content: real JSON whose values, keys and bytes are changed, as a stranger or a broken disk would."""

import copy
import json
import math
import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

DEEP = "a list within lists within lists"
STRANGE = st.sampled_from(
    [None, True, -1, 0, 10**400, -(10**5000), 10**30, 1e308, -1e308, 5e-324, math.nan, math.inf, "", "\x1b[2J\x07", "\0",
     "\ud800", "a" * 70_000, "../../x", [], {}, [[]], [None], {"": None}, DEEP, [1.0] * 5, ["x"], {"cond": [1.0]}]
)  # fmt: skip


def places(value, path=()):
    """Every place in JSON values, lists by their first and last items."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    last = len(value) - 1 if isinstance(value, list) else None
    for key, inner in items:
        if last is None or key in (0, 1, last):
            yield from places(inner, (*path, key))


def put(value, path, new, how):
    if not path:
        return new
    holder = value
    for key in path[:-1]:
        holder = holder[key]
    if how == "remove":
        del holder[path[-1]]
    elif how == "add" and isinstance(holder, dict):
        holder[f"{path[-1]} "] = new
    elif how == "add":
        holder.insert(path[-1], new)
    else:
        holder[path[-1]] = new
    return value


@st.composite
def mutated_values(draw, content):
    value = json.loads(content)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(places(value))))
        value = put(value, path, copy.deepcopy(draw(STRANGE)), draw(st.sampled_from(["replace", "remove", "add"])))
    return dumped(value)


def dumped(value):
    """JSON also of what is nested deeper than ``json`` writes, and of numbers longer than it prints."""
    if isinstance(value, dict):
        return b"{" + b",".join(json.dumps(key).encode() + b":" + dumped(inner) for key, inner in value.items()) + b"}"
    if value == DEEP:
        return b"[" * 903 + b"]" * 903
    if isinstance(value, list):
        return b"[" + b",".join(map(dumped, value)) + b"]"
    if isinstance(value, int) and abs(value) > 10**100:
        return f"{'-' if value < 0 else ''}1{'0' * (400 if abs(value) < 10**1000 else 5000)}".encode()
    return json.dumps(value).encode()


INSERTED = [b"\0", b"\xff", b'"', b"[", b"{", b"-", b"9" * 50, b"e999", b"a." * 300, b"\x1b[2J"]


@st.composite
def mutated_bytes(draw, content):
    found = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(found)))
        how = draw(st.sampled_from(["cut", "flip", "insert", "remove", "double"]))
        if how == "cut":
            del found[place:]
        elif how == "insert":
            found[place:place] = draw(st.sampled_from(INSERTED))
        elif how == "remove":
            del found[place : place + draw(st.integers(1, 40))]
        elif how == "double":
            found[place:place] = found[place : place + 200]
        elif found:
            found[place % len(found)] ^= 1 << draw(st.integers(0, 7))
    return bytes(found)


CAMPAIGN = settings(
    max_examples=int(os.environ.get("MAGPOLICY_FUZZ", "150")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
