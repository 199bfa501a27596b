"""Writes the example workflows, each in ComfyUI's two formats: for its editor, and for its HTTP API.

    python examples/comfyui/write_workflows.py http://127.0.0.1:8188

The server, with magpolicy's nodes in it, is asked what each node takes and gives, so both formats come from one description
(`workflows.py`) and can only name what is there.
"""

from __future__ import annotations

import json
import re
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from workflows import WORKFLOWS, Flow, Node, Output, described

HERE = Path(__file__).parent
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
GAP, SLOT, TITLE, WIDTH = 40, 24, 40, 320

Info = Mapping[str, Any]


def api_format(flow: Flow) -> dict[str, Any]:
    """What `POST /prompt` takes under `prompt`."""
    return {
        str(node.id): {
            "class_type": node.kind,
            "inputs": {name: _linked(value) for name, value in node.inputs.items()},
            "_meta": {"title": node.title or node.kind},
        }
        for node in flow.nodes
    }


def _linked(value: Any) -> Any:
    return [str(value.node.id), value.slot] if isinstance(value, Output) else value


def editor_format(flow: Flow, info: Info) -> dict[str, Any]:
    """What the editor opens and saves."""
    links: list[list[Any]] = []
    nodes = {node.id: _node(node, info, position) for node, position in _placed(flow, info)}
    for node in flow.nodes:
        for slot in nodes[node.id]["inputs"]:
            value = node.inputs.get(slot["name"])
            if not isinstance(value, Output):
                continue
            key = len(links) + 1
            source = nodes[value.node.id]["outputs"][value.slot]
            slot["link"] = key
            source["links"].append(key)
            place = nodes[node.id]["inputs"].index(slot)
            links.append([key, value.node.id, value.slot, node.id, place, source["type"]])
    return {
        "last_node_id": len(flow.nodes),
        "last_link_id": len(links),
        "nodes": list(nodes.values()),
        "links": links,
        "groups": [],
        "config": {},
        "extra": {"info": {"name": flow.note, "description": "An example of magpolicy's nodes"}},
        "version": 0.4,
    }


def _node(node: Node, info: Info, position: tuple[int, int]) -> dict[str, Any]:
    about = info[node.kind]
    known = dict(_inputs(about))
    missing = [name for name in about["input"].get("required", {}) if name not in node.inputs]
    unknown = [name for name in node.inputs if name not in known]
    if missing or unknown:
        raise ValueError(f"{node.kind}: not given {missing}, not known {unknown}")
    shown: dict[str, Any] = {
        "id": node.id,
        "type": node.kind,
        "pos": list(position),
        "size": [WIDTH - GAP, _height(node, info)],
        "flags": {},
        "order": node.id - 1,
        "mode": 0,
        "inputs": [_socket(name, spec) for name, spec in known.items() if _is_socket(node, name, spec)],
        "outputs": [
            {"name": name, "type": kind, "links": []} for name, kind in zip(about["output_name"], about["output"], strict=True)
        ],
        "properties": {"Node name for S&R": node.kind},
        "widgets_values": [value for name, spec in known.items() for value in _widget_values(node, name, spec)],
    }
    return shown | ({"title": node.title} if node.title else {})


def _socket(name: str, spec: Any) -> dict[str, Any]:
    kind = _type(spec)
    return {"name": name, "type": kind, "link": None} | ({"widget": {"name": name}} if kind in WIDGETS else {})


def _is_socket(node: Node, name: str, spec: Any) -> bool:
    return _type(spec) not in WIDGETS or isinstance(node.inputs.get(name), Output)


def _widget_values(node: Node, name: str, spec: Any) -> Iterator[Any]:
    """The value of an input that is a widget, and those of widgets that the editor adds to it."""
    if _type(spec) not in WIDGETS:
        return
    options = spec[1] if len(spec) > 1 else {}
    given = node.inputs.get(name)
    yield _default(spec) if given is None or isinstance(given, Output) else given
    if options.get("control_after_generate"):
        yield "fixed"
    if options.get("image_upload"):
        yield "image"


def _default(spec: Any) -> Any:
    options = spec[1] if len(spec) > 1 else {}
    choices = spec[0] if isinstance(spec[0], list) else options.get("options", [])
    return options.get("default", choices[0] if choices else {"STRING": "", "BOOLEAN": False}.get(_type(spec), 0))


def _type(spec: Any) -> str:
    return "COMBO" if isinstance(spec[0], list) else str(spec[0])


def _inputs(about: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Inputs as the editor lists them."""
    for kind in ("required", "optional"):
        yield from (about["input"].get(kind) or {}).items()


def _placed(flow: Flow, info: Info) -> Iterator[tuple[Node, tuple[int, int]]]:
    """Nodes and where they go: each to the right of all it needs."""
    columns: dict[int, int] = {}
    heights: dict[int, int] = {}
    for node in flow.nodes:
        before = [columns[value.node.id] for value in node.inputs.values() if isinstance(value, Output)]
        column = columns[node.id] = max(before, default=-1) + 1
        top = heights.get(column, 0)
        heights[column] = top + _height(node, info) + TITLE + GAP
        yield node, (column * WIDTH, top)


def _height(node: Node, info: Info) -> int:
    about = info[node.kind]
    specs = [spec for _, spec in _inputs(about)]
    texts = sum(len(spec) > 1 and bool(spec[1].get("multiline")) for spec in specs)
    panel = {"MagCache": 110, "MagPolicySpeedUp": 140}.get(node.kind, 0)
    return SLOT * max(len(specs), len(about["output"])) + 100 * texts + panel


def files(info: Info) -> Iterator[tuple[Path, str]]:
    """Each file and its text. A workflow whose nodes this ComfyUI does not have is left out."""
    for workflow in WORKFLOWS:
        flow = described(workflow)
        name = re.sub(r"(\d)_(\d)", r"\1.\2", workflow.__name__)
        if all(node.kind in info for node in flow.nodes):
            yield HERE / f"{name}.api.json", _text(api_format(flow))
            yield HERE / f"{name}.json", _text(editor_format(flow, info))


def _text(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    server = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8188"
    with urllib.request.urlopen(f"{server.rstrip('/')}/object_info", timeout=60) as answer:
        info = json.load(answer)
    for path, text in files(info):
        path.write_text(text, encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
