"""What a plugin can do. Register it under the entry-point group ``magpolicy``; implement what you need.

>>> import magpolicy
>>> class MyPlugin:
...     @magpolicy.hookimpl
...     def presets(self):
...         return [magpolicy.Preset(name="my-model", curve=magpolicy.Curve([1.0, 1.02, 0.99]))]
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from magpolicy.catalog._presets import Preset
    from magpolicy.hosts._attach import AttachRequest
    from magpolicy.hosts._compile import CompileRequest
    from magpolicy.run._session import Session
    from magpolicy.schedule._trace import TraceEntry

PROJECT = "magpolicy"
hookspec: pluggy.HookspecMarker = pluggy.HookspecMarker(PROJECT)
hookimpl: pluggy.HookimplMarker = pluggy.HookimplMarker(PROJECT)


@hookspec
def presets() -> Iterable[Preset]:  # type: ignore[empty-body]
    """Presets to offer beside the shipped ones. Asked once a process."""


@hookspec(firstresult=True)
def attach(target: Any, request: AttachRequest) -> Any:
    """Attach the policy described by ``request`` to ``target`` and return a handle, or ``None`` if this is not yours.

    The request is checked already. Raise before anything is patched if the object cannot be driven as asked. Where ``target``
    has a handle already, the new one takes its place: check first, and detach the old one then.
    """


@hookspec
def attached(target: Any) -> Sequence[Any] | None:
    """The handles that are attached to ``target``, the oldest first; ``None`` if this is not yours.

    :func:`magpolicy.attached` gives them to whoever has lost one, and :func:`magpolicy.detach` calls the ``detach()`` of each.
    Without this hook your users need the handle that ``attach`` gave them. What it raises reaches the user where no other
    plugin knows ``target``, and is a warning where one does.
    """


@hookspec(firstresult=True)
def preset_for(target: Any) -> Preset | str | Sequence[Preset | str] | None:
    """The preset for ``target``, a model or pipeline that was attached to without ratios; ``None`` if this is not yours.

    Or several, the best first: one that lacks settings of the rule, as a calibration does, is then passed over for the next
    where the rule is asked for.

    Raise :class:`magpolicy.PresetError` for one of yours that no preset fits; say which come close, and how to calibrate.
    """


@hookspec(firstresult=True)
def compile(target: Any, request: CompileRequest) -> Any:
    """Compile ``target`` in place as its host does it, and return it; ``None`` if this is not yours.

    Whether a step computes or skips is decided outside of what is compiled, so nothing here has to care. Raise
    :class:`magpolicy.ArgumentError` for what the host cannot do, and name the nearest that it can.
    """


@hookspec
def on_run_start(session: Session) -> None:
    """A run begins."""


@hookspec
def on_decision(session: Session, entry: TraceEntry) -> None:
    """One stream's decision is final."""


@hookspec
def on_run_end(session: Session, report: Any) -> None:
    """A run ended, by its last step, early, or by an exception.

    ``report`` is what the adapter says of it, a :class:`magpolicy_torch.Report` of the adapters on torch. ``None``: there is no
    adapter, or it makes none; the session has the trace.
    """
