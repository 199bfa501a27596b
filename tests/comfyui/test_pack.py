"""What ComfyUI loads, beside packs with nodes of the same names, and where there is no server.

Other packs are stood in for by nodes that do nothing; ComfyUI's own loader loads them.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from environments import HOST_PATHS
from hypothesis import given, settings
from hypothesis import strategies as st

REPOSITORY = Path(__file__).parents[2]
PACK = """
class Node:
    INPUT_TYPES = classmethod(lambda cls: {"required": {}})
    RETURN_TYPES, FUNCTION, CATEGORY = (), "run", "tests"
NODE_CLASS_MAPPINGS = {name: type(name, (Node,), {}) for name in %r}
"""
OURS = "magpolicy"
LOADS = "from magpolicy_comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS"
ORIGIN = ("MagCache", "MagCacheCalibration", "CompileModel")


@pytest.fixture
def loaded(comfyui: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """ComfyUI's table of nodes, and a function that loads packs into it in an order; it gives what we say then."""
    import nodes

    monkeypatch.setattr(nodes, "NODE_CLASS_MAPPINGS", {})
    monkeypatch.setattr(nodes, "NODE_DISPLAY_NAME_MAPPINGS", {})

    def load(packs: dict[str, tuple[str, ...]], order: tuple[str, ...]) -> tuple[dict[str, Any], list[str]]:
        from magpolicy_comfyui import NODE_CLASS_MAPPINGS
        from magpolicy_comfyui._same_names import SameNames

        names: Any = None
        for pack in order:
            if pack == OURS:
                names = SameNames.before(NODE_CLASS_MAPPINGS, nodes.NODE_CLASS_MAPPINGS)
            folder = tmp_path / "custom_nodes" / pack
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "__init__.py").write_text(LOADS if pack == OURS else PACK % (packs[pack],))
            made = nodes.load_custom_node(str(folder))
            assert asyncio.run(made) if inspect.isawaitable(made) else made
        return nodes.NODE_CLASS_MAPPINGS, list(names.told(nodes.NODE_CLASS_MAPPINGS))

    return load


PACKS = {"ComfyUI-MagCache": ORIGIN, "Compilers": ("CompileModel",), "Else": ("Other",)}


@pytest.mark.parametrize("order", list(itertools.permutations([OURS, "ComfyUI-MagCache", "Compilers"])), ids="-".join)
def test_whose_nodes_workflows_get_is_told(loaded: Any, order: tuple[str, ...]) -> None:
    from magpolicy_comfyui import NODE_CLASS_MAPPINGS

    known, told = loaded(PACKS, order)
    for name in ORIGIN:
        pack = known[name].RELATIVE_PYTHON_MODULE.removeprefix("custom_nodes.")
        if known[name] is NODE_CLASS_MAPPINGS[name]:
            assert any(name in line and "are this pack's" in line for line in told)
        else:
            assert any(name in line and f"are those of {pack}, which" in line and "MagPolicySpeedUp" in line for line in told)
    assert all("Other" not in line for line in told)


def test_nothing_is_said_where_no_names_are_shared(loaded: Any) -> None:
    for order in ((OURS, "Else"), ("Else", OURS)):
        assert loaded(PACKS, order)[1] == []


def test_it_is_told_when_the_server_starts_or_else_at_once(comfyui: Path) -> None:
    from aiohttp import web

    from magpolicy_comfyui._same_names import SameNames, tell_when_loaded

    ours, theirs = {"MagCache": object(), "MagPolicy": object()}, {"MagCache": object()}
    told: list[str] = []
    known: dict[str, Any] = dict(ours)
    server = SimpleNamespace(app=web.Application())
    tell_when_loaded(SameNames.before(ours, {}), server, lambda: known, told.append)
    known |= theirs
    assert told == []
    server.app.on_startup.freeze()
    asyncio.run(server.app.on_startup.send(server.app))
    assert len(told) == 1
    assert "loaded after this pack; ours are named MagPolicy." in told[0]
    for nobody in (None, object(), server):  # the last one has started already
        told.clear()
        tell_when_loaded(SameNames.before(ours, theirs), nobody, lambda: theirs, told.append)
        assert len(told) == 1
        assert "are this pack's" in told[0]


@settings(max_examples=200, deadline=None)
@given(
    order=st.lists(st.sampled_from([OURS, "a", "b", "c"]), unique=True, min_size=1).filter(lambda packs: OURS in packs),
    nodes=st.dictionaries(st.sampled_from(["a", "b", "c"]), st.sets(st.sampled_from([*ORIGIN, "x"]))),
)
def test_every_shared_name_is_in_one_line_of_the_pack_that_shares_it(order: list[str], nodes: dict[str, set[str]]) -> None:
    from magpolicy_comfyui._same_names import SameNames

    def pack(name: str, has: Any) -> dict[str, Any]:
        return {node: SimpleNamespace(RELATIVE_PYTHON_MODULE=f"custom_nodes.{name}") for node in has}

    packs = {OURS: pack(OURS, ORIGIN)} | {name: pack(name, nodes.get(name, ())) for name in "abc"}
    known: dict[str, Any] = {}
    for name in order:
        if name == OURS:
            names = SameNames.before(packs[OURS], known)
        known |= packs[name]
    told = list(names.told(known))
    lost = {name for name in ORIGIN if known[name] is not packs[OURS][name]}
    before = {name for each in order[: order.index(OURS)] for name in packs[each] if name in ORIGIN}
    lines = [line.removeprefix("the nodes ").partition(" of workflows")[0].split(", ") for line in told]
    assert {name for line in lines for name in line} == lost | before


# Without a server


WITHOUT = {
    "nodes first": "",
    "another module of that name": "sys.modules['server'] = types.ModuleType('server')",
    "a server nobody made": "sys.modules['server'] = types.SimpleNamespace(PromptServer=type('PromptServer', (), {}))",
    "a stand-in": "sys.modules['server'] = types.SimpleNamespace(PromptServer=types.SimpleNamespace(instance=object()))",
}


@pytest.mark.sampled
@pytest.mark.parametrize("way", WITHOUT)
def test_the_nodes_work_where_there_is_no_server(comfyui: Path, way: str) -> None:
    """As in a script that imports ``nodes``, and where ComfyUI is used as a library."""
    code = f"""
import importlib.util, logging, sys, types
logging.basicConfig(level=logging.WARNING)
sys.path[:0] = {HOST_PATHS!r}
from host import load, models, running
load({_version(comfyui)!r})
{WITHOUT[way]}
before = sys.modules.get("server")
spec = importlib.util.spec_from_file_location("pack", {str(REPOSITORY / "__init__.py")!r})
pack = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)
assert sys.modules.get("server") is before, "a server was imported"
patcher = models.make("Flux")
for name in {("MagPolicySpeedUp", "MagCache") if way == "nodes first" else ("MagCache",)}:
    rule = dict(magcache_thresh=0.24, retention_ratio=0.2, magcache_K=4, unique_id="7")
    inputs = dict(speedup="balanced", learn="off") if name == "MagPolicySpeedUp" else dict(model_type="flux", **rule)
    (node,) = pack.NODE_CLASS_MAPPINGS[name]().apply(model=patcher, **inputs)
    running.sample(node, "Flux", steps=10)
    (text,) = pack.NODE_CLASS_MAPPINGS["MagPolicyReport"]().report(None, node)["ui"]["text"]
    print(name, "skipped" if "·" in text else text)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == ["MagCache skipped"], done.stderr[-3000:]
    assert done.stdout.count("skipped") == (2 if way == "nodes first" else 1)


def _version(comfyui: Path) -> str:
    from host import chosen, obtain

    return next(version for version in chosen() if obtain(version) == comfyui)
