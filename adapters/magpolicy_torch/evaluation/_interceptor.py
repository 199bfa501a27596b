"""Standing in front of a module's call, so that it can be undone without a trace."""

from __future__ import annotations

import copyreg
from collections.abc import Callable
from types import CodeType
from typing import Any

from torch._C._dynamo import eval_frame
from torch._C._dynamo.eval_frame import set_eval_frame

from torch import nn


def _skip_code(code: CodeType) -> None:
    action: Any = eval_frame._FrameAction
    eval_frame.set_code_exec_strategy(code, eval_frame._FrameExecStrategy(action.SKIP, action.DEFAULT))


# "Do not compile this frame, only those below", without importing torch._dynamo, which takes seconds.
skip_code: Callable[[CodeType], None] = getattr(eval_frame, "skip_code", _skip_code)
# Not in every torch: there, nobody counts.
_count_frames: Callable[[int], int] = getattr(eval_frame, "set_fullgraph_compiled_frame_count", lambda count: -1)


class HostCall:
    """The call that was to be made."""

    def __init__(self, kind: type, module: nn.Module, compiling: Any) -> None:
        self.kind: Any = kind
        """The module's class as found."""
        self.compiling = compiling
        """What ``torch.compile`` left here for the frames to come, or ``None``."""
        self._module = module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return compiled(self.compiling, lambda: self.kind.__call__(self._module, *args, **kwargs))


Around = Callable[[HostCall, tuple[Any, ...], dict[str, Any]], Any]
"""``(original call, args, kwargs) -> result``"""


class CallInterceptor:
    """Hands each call of ``module`` to ``around``.

    Calling an object looks at its class, so the module gets a class of its own: its class, and a ``__call__``. That is further
    out than anything that may stand around ``forward`` (hooks, offloading), and outside of what ``torch.compile`` compiles. A
    copy, also a pickled one, is of the class as found.
    """

    def __init__(self, module: nn.Module, around: Around, wrapper: nn.Module | None = None) -> None:
        self._module = module
        self._around: Around | None = around
        self._found: type | None = None
        self._wrapper: Any = wrapper  # what torch.compile(module) had returned: it knows the call as it was

    def install(self) -> None:
        """Take the place."""
        found = self._found = type(self._module)

        def __call__(module: nn.Module, /, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
            # torch.compile comes here when it has wrapped the module. What follows decides, and is not to be compiled.
            compiling = set_eval_frame(None)
            try:
                if self._around is None or module is not self._module:
                    return compiled(compiling, lambda: found.__call__(module, *args, **kwargs))
                return self._around(HostCall(found, module, compiling), args, kwargs)
            finally:
                set_eval_frame(compiling)

        skip_code(__call__.__code__)
        names = {"__call__": __call__, "__reduce_ex__": _reduced_as(found), "_magpolicy_front": self}
        names |= {name: getattr(found, name) for name in ("__module__", "__qualname__", "__doc__")}
        self._module.__class__ = self._kind = type(found.__name__, (found,), names)
        self._tell_wrapper()

    def remove(self) -> None:
        """Give the place back. If somebody has changed the class since, theirs stays, and we only pass calls on from now."""
        self._around = None
        if type(self._module) is self._kind and self._found is not None:
            self._module.__class__ = self._found
            self._tell_wrapper()

    def _tell_wrapper(self) -> None:
        if self._wrapper is not None:
            self._wrapper._initialize()

    @staticmethod
    def on(module: nn.Module) -> bool:
        """Whether somebody stands in front of ``module``."""
        front = getattr(type(module), "_magpolicy_front", None)
        return front is not None and front._around is not None and front._module is module


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


def _reduced_as(kind: Any) -> Callable[[Any, Any], Any]:
    def __reduce_ex__(self: Any, protocol: Any) -> Any:  # noqa: N807
        reduced: Any = kind.__reduce_ex__(self, protocol)
        if not isinstance(reduced, tuple) or reduced[1][:1] != (type(self),):
            return reduced
        # Not copyreg's __newobj__, which insists on the object's present class.
        return (copyreg._reconstructor, (kind, object, None), *reduced[2:])  # type: ignore[attr-defined]

    return __reduce_ex__
