"""Deciding about a module's call before it is made, in a way that can be undone without a trace."""

from __future__ import annotations

from collections.abc import Callable
from types import CodeType, MethodType
from typing import Any

from torch._C._dynamo import eval_frame

from magpolicy_torch.blocks._patch import Patch
from torch import nn

set_eval_frame = eval_frame.set_eval_frame  # no package in older versions of torch: `from` cannot import it there


def _skip_code(code: CodeType) -> None:
    action: Any = eval_frame._FrameAction
    eval_frame.set_code_exec_strategy(code, eval_frame._FrameExecStrategy(action.SKIP, action.DEFAULT))


# "Do not compile this frame, only those below", without importing torch._dynamo, which takes seconds.
skip_code: Callable[[CodeType], None] = getattr(eval_frame, "skip_code", _skip_code)
# Not in every torch: there, nobody counts.
_count_frames: Callable[[int], int] = getattr(eval_frame, "set_fullgraph_compiled_frame_count", lambda count: -1)

_OURS = ("_call_impl", "_compiled_call_impl", "__getstate__")
"""The instance attributes that an interceptor sets."""


class HostCall:
    """The host's call of ``module``, not made yet. A host that calls the model itself makes one: ``HostCall(module)``."""

    def __init__(
        self, module: nn.Module, call: Callable[..., Any] | None = None, compiling: Any = None, entry: str = "__call__"
    ) -> None:
        self.module, self.entry = module, entry
        self.eager: Callable[..., Any] = module.__call__ if call is None else call
        """Makes the call, and has nothing compiled that is not compiled by itself."""
        self.compiling = compiling
        """What ``torch.compile`` left here for the frames to come, or ``None``."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return compiled(self.compiling, lambda: self.eager(*args, **kwargs))


Around = Callable[[HostCall, tuple[Any, ...], dict[str, Any]], Any]
"""``(original call, args, kwargs) -> result``"""


class CallInterceptor:
    """Hands each call of ``module`` to ``around``.

    ``torch.nn.Module`` looks up two attributes on the instance when it is called: ``_compiled_call_impl``, if
    ``module.compile()`` has set one, and ``_call_impl``. Ours stand in their place. That is further out than anything that may
    stand around ``forward`` (hooks, offloading), and outside of what ``torch.compile`` compiles. The class stays as it is, and
    copies are not intercepted. Where a class has a ``__call__`` of its own, which may never come to ``_call_impl``, its
    ``forward`` is replaced instead.
    """

    def __init__(self, module: nn.Module, around: Around) -> None:
        self._module = module
        self._around: Around | None = around
        self._patch: Patch | None = None
        self._found: dict[str, Any] = {}
        self._ours: dict[str, Any] = {}
        if type(module).__call__ is not nn.Module.__call__:
            self._patch = Patch(
                module, lambda call, args, kwargs: around(HostCall(module, call, None, "forward"), args, kwargs)
            )

    def install(self) -> None:
        """Take the place."""
        if self._patch is not None:
            self._patch.install()
            return
        attributes = self._module.__dict__
        self._found = {name: attributes[name] for name in _OURS if name in attributes}
        self._ours["_call_impl"] = MethodType(self._intercept(), self._module)
        self._ours["__getstate__"] = MethodType(_state_without_ours, self._module)
        if attributes.get("_compiled_call_impl") is not None:
            # Compiled before, with its options; now it is as if it had been compiled after.
            self._ours["_compiled_call_impl"] = _compiled_as(attributes["_compiled_call_impl"], self._ours["_call_impl"])
        attributes.update(self._ours)

    def remove(self) -> None:
        """Give the place back. What somebody has put in ours since stays, and we only pass calls on from now."""
        self._around = None
        if self._patch is not None:
            self._patch.remove()
            return
        attributes = self._module.__dict__
        for name, ours in self._ours.items():
            if attributes.get(name) is ours and name in self._found:
                attributes[name] = self._found[name]
            elif attributes.get(name) is ours:
                del attributes[name]
        compiled_since = getattr(attributes.get("_compiled_call_impl"), "__wrapped__", None)
        if compiled_since is not None and compiled_since is self._ours.get("_call_impl"):
            # Compiled since: what was compiled is our method.
            attributes["_compiled_call_impl"] = _compiled_as(attributes["_compiled_call_impl"], self._module._call_impl)

    def _intercept(self) -> Callable[..., Any]:
        found = self._found.get("_call_impl")

        def intercept(module: Any, /, *args: Any, **kwargs: Any) -> Any:
            # torch.compile comes here when it has wrapped the module. What follows decides, and is not to be compiled.
            compiling = set_eval_frame(None)
            try:
                call = HostCall(module, found or MethodType(type(module)._call_impl, module), compiling, "_call_impl")
                if self._around is None or module is not self._module:
                    return call(*args, **kwargs)
                return self._around(call, args, kwargs)
            finally:
                set_eval_frame(compiling)

        skip_code(intercept.__code__)
        intercept.interceptor = self  # type: ignore[attr-defined]
        return intercept

    @staticmethod
    def on(module: nn.Module) -> bool:
        """Whether the calls of ``module`` are intercepted."""
        method = module.__dict__.get("_call_impl")
        found = getattr(getattr(method, "__func__", None), "interceptor", None)
        return Patch.on(module) or (found is not None and found._around is not None and found._module is module)


def without_ours(attributes: dict[str, Any]) -> dict[str, Any]:
    """The attributes of a module, less those that an interceptor may have set."""
    return {name: value for name, value in attributes.items() if name not in _OURS}


def _state_without_ours(module: Any, /) -> Any:
    """What ``copy`` and ``pickle`` take of an intercepted module: as its class says, and nothing of ours."""
    get = getattr(type(module), "__getstate__", None)
    state = module.__dict__ if get is None else get(module)
    if not isinstance(state, dict):
        return state
    found = without_ours(state)
    for name, value in state.items():  # methods that are replaced on it
        while isinstance(value, Patch):
            value = value.found
            found[name] = value
        if value is None and isinstance(state[name], Patch):
            del found[name]
    return found


def _compiled_as(own: Any, call: Callable[..., Any]) -> Any:
    """``call``, compiled with the options of ``own``, which ``torch.compile`` has made; as it is, if that cannot be told."""
    names = getattr(getattr(own, "__code__", None), "co_freevars", ())
    cells = dict(zip(names, getattr(own, "__closure__", None) or (), strict=False))
    return cells["self"].cell_contents(call) if "self" in cells else call


def compiled(callback: Any, call: Callable[[], Any]) -> Any:
    """``call()``, its frames compiled as ``callback`` does it; ``None`` compiles nothing."""
    if callback is None:
        return call()
    skip_code(call.__code__)
    set_eval_frame(callback)
    try:
        return call()
    finally:
        set_eval_frame(None)


def uncompiled(callback: Any, call: Callable[[], Any]) -> Any:
    """``call()`` with nothing compiled, where ``callback`` would have compiled something."""
    result = call()
    if callback is not None:
        # fullgraph=True asks for at least one compiled frame, or it takes this for a mistake.
        counted = _count_frames(-1)
        if counted >= 0:  # a count under way is not set but begun
            _count_frames(counted + 1)
    return result
