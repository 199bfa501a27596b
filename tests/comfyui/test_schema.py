"""The nodes in both forms that ComfyUI knows: what it says of them is the same, so saved workflows load as they did."""

from __future__ import annotations

import asyncio
import inspect
import sys
from pathlib import Path
from typing import Any

import pytest
from host import running

NAMES = ["MagCache", "MagCacheCalibration", "CompileModel", "MagPolicySpeedUp", "MagPolicy", "MagPolicyCalibration",
         "MagPolicyCompile", "MagPolicyPreview", "MagPolicyReport"]  # fmt: skip


def told(inputs: dict[str, Any]) -> list[Any]:
    """What an editor makes of a node's inputs, in their order: which one of a saved file's values belongs to which."""
    groups = [(group, inputs.get(group, {})) for group in ("required", "optional")]
    return [(group, name, *_widget(*about)) for group, found in groups for name, about in found.items()]


def _widget(kind: Any, options: dict[str, Any] | None = None) -> tuple[Any, ...]:
    options = dict(options or {})
    if kind == "COMBO":
        kind = options.pop("options")
    return kind, {key: value for key, value in options.items() if value is not False}


def test_every_node_is_of_the_schema_where_it_checks_what_it_is_given(comfyui: Path, nodes: dict[str, Any]) -> None:
    from magpolicy_comfyui import NODE_DISPLAY_NAME_MAPPINGS
    from magpolicy_comfyui.nodes import _schema

    given = _schema.for_host(nodes, NODE_DISPLAY_NAME_MAPPINGS)
    assert (given == nodes) is (running.version() < (0, 4))  # between the two, nothing was tried


def test_every_node_is_of_the_schema(schema: dict[str, Any], nodes: dict[str, Any]) -> None:
    from comfy_api.latest import io

    assert list(schema) == list(nodes) == NAMES
    assert all(issubclass(node, io.ComfyNode) for node in schema.values())


@pytest.mark.parametrize("name", NAMES)
def test_both_forms_say_the_same(name: str, schema: dict[str, Any], nodes: dict[str, Any], folder: Path) -> None:
    from magpolicy_comfyui import NODE_DISPLAY_NAME_MAPPINGS

    old, info = nodes[name], schema[name].GET_NODE_INFO_V1()
    assert told(info["input"]) == told(old.INPUT_TYPES()) == told(schema[name].INPUT_TYPES())
    hidden = old.INPUT_TYPES().get("hidden", {})
    assert hidden.items() <= {key: value[0] for key, value in info["input"].get("hidden", {}).items()}.items()
    assert info["output"] == list(old.RETURN_TYPES) == list(schema[name].RETURN_TYPES)
    assert info["output_name"] == list(getattr(old, "RETURN_NAMES", old.RETURN_TYPES))
    assert info["display_name"] == NODE_DISPLAY_NAME_MAPPINGS[name]
    assert (info["name"], info["category"], info["description"]) == (name, old.CATEGORY, old.DESCRIPTION)
    assert info["output_node"] is getattr(old, "OUTPUT_NODE", False)
    assert info.get("search_aliases", [*old.SEARCH_ALIASES]) == [*old.SEARCH_ALIASES]
    # A calibration that was written since is offered, and a node that reads it runs again when it changes.
    if "model_type" in old.INPUT_TYPES()["required"]:
        folder.mkdir()
        (folder / "new.json").write_text("{}")
        assert told(schema[name].INPUT_TYPES()) == told(old.INPUT_TYPES()) != told(info["input"])
    if hasattr(old, "IS_CHANGED"):
        kind = {"model_type": "file: new.json"}
        again = [schema[name].fingerprint_inputs(**kind), old.IS_CHANGED(**kind)]
        assert again[0] == again[1] or all(value != value for value in again)


def test_comfyuis_loader_takes_them(schema: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nodes as host_nodes

    monkeypatch.setattr(host_nodes, "NODE_CLASS_MAPPINGS", {})
    monkeypatch.setitem(sys.modules, "schema_of_ours", type("pack", (), {"nodes": schema}))
    (tmp_path / "ours.py").write_text("from schema_of_ours import nodes as NODE_CLASS_MAPPINGS")
    loading = host_nodes.load_custom_node(str(tmp_path / "ours.py"))
    assert asyncio.run(loading) if inspect.isawaitable(loading) else loading
    assert schema == host_nodes.NODE_CLASS_MAPPINGS
    assert all(node.RELATIVE_PYTHON_MODULE.startswith("custom_nodes.") for node in schema.values())


def test_a_comfyui_without_a_schema_gets_the_older_form(nodes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from magpolicy_comfyui.nodes import _schema

    monkeypatch.setitem(sys.modules, "comfy_api.latest", None)
    assert _schema.for_host(nodes, {}) == nodes
