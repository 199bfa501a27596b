"""magpolicy for ComfyUI: a node pack, and ``magpolicy.attach`` for its models.

ComfyUI finds :data:`NODE_CLASS_MAPPINGS` here. Nothing of ComfyUI or torch is imported before somebody asks for it.
"""

import lazy_loader

# The core loads this package as a plugin with every run; ComfyUI is to be imported by those who use it.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
