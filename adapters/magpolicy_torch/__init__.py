"""magpolicy for PyTorch: residuals, block stacks, and the two ways in, ``magpolicy.attach`` and :func:`run_step`.

Hosts' adapters build on :class:`BlockStack`, :class:`Run` and :func:`evaluate`.
"""

import lazy_loader

# The core loads this package as a plugin with every run; torch is to be imported by those who use it.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
