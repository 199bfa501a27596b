"""The nodes in the form that ComfyUI recommends: its V3 schema, which is where it adds what nodes can have.

Every node is written once, in the older form (``_nodes``). Names, order and defaults of inputs, which saved workflows depend
on, are read from there, so that the two forms cannot differ (docs/adr/0015-nodes-in-two-forms.md).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

_KINDS = {
    "INT": "Int", "FLOAT": "Float", "STRING": "String", "BOOLEAN": "Boolean",
    "MODEL": "Model", "LATENT": "Latent", "IMAGE": "Image",
}  # fmt: skip
"""By the names of the older form, those of the schema."""
_CHECKED = "search_aliases"
"""A field that the schema got in January 2026. A month before, ComfyUI had learned to hold choices against their lists: until
then a prompt with an unknown ``model_type`` was queued, and failed when its models had been loaded."""


def for_host(nodes: Mapping[str, type], titles: Mapping[str, str]) -> dict[str, type]:
    """``nodes`` in the schema of the ComfyUI that runs here, or as they are where it has none that checks what it is given.

    Args:
        nodes: in the older form, by the names that ComfyUI knows them by.
        titles: what a user reads, by the same names.
    """
    try:
        from comfy_api.latest import io
    except ImportError:  # a ComfyUI from before it had a schema
        return dict(nodes)
    if _CHECKED not in {field.name for field in dataclasses.fields(io.Schema)}:
        return dict(nodes)
    return {name: _in_schema(io, name, node, titles[name]) for name, node in nodes.items()}


def _in_schema(io: Any, name: str, node: Any, title: str) -> type:
    def called(*args: Any, **inputs: Any) -> Any:
        return getattr(node(), node.FUNCTION)(*args, **inputs)

    def execute(cls: Any, /, **inputs: Any) -> Any:
        hidden = {key: getattr(cls.hidden, kind.name, None) for key, kind in _hidden(io, node).items()}
        given = called(**inputs, **hidden)
        shown = isinstance(given, dict)
        return io.NodeOutput(*(given["result"] if shown else given), ui=given["ui"] if shown else None)

    methods: dict[str, Any] = {
        "define_schema": classmethod(lambda cls: _schema(io, name, node, title)),
        "execute": classmethod(execute),
        node.FUNCTION: staticmethod(called),  # for scripts that call nodes by the names of the older form
    }
    if hasattr(node, "IS_CHANGED"):
        methods["fingerprint_inputs"] = classmethod(lambda cls, **inputs: node.IS_CHANGED(**inputs))
    return type(node.__name__, (io.ComfyNode,), {**methods, "__doc__": node.__doc__, "__module__": node.__module__})


def _schema(io: Any, name: str, node: Any, title: str) -> Any:
    """What a node is, anew each time: its choices change with the files in the user's folders."""
    groups = node.INPUT_TYPES()
    required = [_input(io, key, *about) for key, about in groups.get("required", {}).items()]
    optional = [_input(io, key, *about, optional=True) for key, about in groups.get("optional", {}).items()]
    return io.Schema(
        node_id=name,
        display_name=title,
        category=node.CATEGORY,
        description=node.DESCRIPTION,
        inputs=[*required, *optional],
        outputs=_outputs(io, node),
        hidden=list(_hidden(io, node).values()),
        is_output_node=getattr(node, "OUTPUT_NODE", False),
        search_aliases=list(node.SEARCH_ALIASES),
        # Two nodes with the same inputs are two, each with a report of its own: by their ids, as in the older form.
        not_idempotent=bool(_hidden(io, node)),
    )


def _input(io: Any, key: str, kind: Any, options: Mapping[str, Any] | None = None, *, optional: bool = False) -> Any:
    options = dict(options or {})
    if isinstance(kind, list):
        return io.Combo.Input(key, options=kind, optional=optional, **options)
    return getattr(io, _KINDS[kind]).Input(key, optional=optional, **options)


def _outputs(io: Any, node: Any) -> list[Any]:
    names = getattr(node, "RETURN_NAMES", (None,) * len(node.RETURN_TYPES))
    return [getattr(io, _KINDS[kind]).Output(display_name=name) for kind, name in zip(node.RETURN_TYPES, names, strict=True)]


def _hidden(io: Any, node: Any) -> dict[str, Any]:
    return {key: io.Hidden(kind) for key, kind in node.INPUT_TYPES().get("hidden", {}).items()}
