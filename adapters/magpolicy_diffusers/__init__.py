"""magpolicy for diffusers: ``magpolicy.attach(pipe_or_transformer)`` returns a :class:`Handle`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from magpolicy_diffusers._handle import Handle
    from magpolicy_diffusers._trial import trial
else:
    _HOMES = {"Handle": "_handle", "trial": "_trial"}

    # The core loads this package as a plugin with every run; torch and diffusers are to be imported by those who use them.
    def __getattr__(name):
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


__all__ = ["Handle", "trial"]
