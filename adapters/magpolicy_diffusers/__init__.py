"""magpolicy for diffusers: ``magpolicy.attach(pipe_or_transformer)`` returns a :class:`Handle`."""

import lazy_loader

# The core loads this package as a plugin with every run; torch and diffusers are to be imported by those who use them.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
