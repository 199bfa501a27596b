"""magpolicy for diffusers: ``magpolicy.attach(pipe_or_transformer)`` returns a :class:`Handle`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from magpolicy_diffusers._handle import Handle
else:
    # The core loads this package as a plugin with every run; torch and diffusers are to be imported by those who use them.
    def __getattr__(name):
        if name != "Handle":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from magpolicy_diffusers._handle import Handle

        return Handle


__all__ = ["Handle"]
