"""magpolicy for vLLM-Omni: ``--cache-backend magpolicy``.

vLLM-Omni calls :func:`register` in each of its processes. It adds the backend to those that the engine chooses from by name.
"""

import lazy_loader

# The core loads this package as a plugin with every run; torch and the engine are to be imported by those who use them.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
