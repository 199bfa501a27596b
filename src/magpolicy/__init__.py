"""magpolicy decides which denoising steps of a diffusion model may be skipped.

The core needs numpy and a few small libraries of pure Python; adapters bring the decision into PyTorch loops and hosts. Start
with :func:`simulate` to preview a schedule and :func:`attach` to run it.

The public names stand in ``__init__.pyi``. Each is imported when it is first used, so that ``import magpolicy`` costs next to
nothing and loads no host; the search for plugins in particular waits until somebody asks for one.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
