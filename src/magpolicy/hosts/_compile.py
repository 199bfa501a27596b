"""Compiling somebody's model as its host does it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from magpolicy import _checks
from magpolicy._errors import ArgumentError
from magpolicy.hosts import _dispatch

REGIONS = ("blocks", "model")


@frozen(kw_only=True)
class CompileRequest:
    """The checked settings of one :func:`magpolicy.compile`, for an adapter."""

    __module__ = "magpolicy"

    region: str = "blocks"
    """``"blocks"``: each repeated block by itself, compiled once for all of them; ``"model"``: the model as a whole."""
    options: Mapping[str, Any] = field(factory=dict)
    """Keyword arguments for ``torch.compile``, those that were given."""


def compile(
    target: Any,
    *,
    region: str = "blocks",
    backend: str | Any = None,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
    fullgraph: bool | None = None,
    dynamic: bool | None = None,
) -> Any:
    """Compile a model or pipeline in place, the way its host does it, before or after :func:`magpolicy.attach`.

    It is not needed: ``torch.compile(model)``, ``model.compile()`` and ``model.compile_repeated_blocks()`` work as well, in
    either order. The first computed call of each kind runs uncompiled; in it magpolicy observes how the model calls its blocks.

    Args:
        target: what :func:`magpolicy.attach` takes.
        region: ``"blocks"`` (quick to compile, one graph for each kind of block) or ``"model"`` (two graphs at most: one that
            computes, one that skips).
        backend: a backend of ``torch.compile``, by default inductor.
        mode: inductor's ``"default"``, ``"reduce-overhead"``, ``"max-autotune"`` or ``"max-autotune-no-cudagraphs"``.
        options: options for the backend; not together with ``mode``.
        fullgraph: raise if the model cannot be one graph.
        dynamic: ``True``: compile for any shape at once; ``False``: for each shape anew.

    Returns:
        ``target``.

    Raises:
        ArgumentError: a setting is unknown, or two of them exclude each other.
        AdapterError: no installed adapter can compile ``target``.
    """
    _checks.one_of("region", region, REGIONS)
    if mode is not None and options is not None:
        raise ArgumentError(f"mode={mode!r} is a set of options, and options is given too; leave one of them out")
    if mode is not None and backend not in (None, "inductor"):
        raise ArgumentError(f"mode={mode!r} is for backend='inductor', not {backend!r}; leave mode out, or backend")
    given = {"backend": backend, "mode": mode, "options": options, "fullgraph": fullgraph, "dynamic": dynamic}
    request = CompileRequest(region=region, options={name: value for name, value in given.items() if value is not None})
    return _dispatch.compiled(target, request)
