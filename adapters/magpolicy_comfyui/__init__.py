"""magpolicy for ComfyUI: a node pack, and ``magpolicy.attach`` for its models.

ComfyUI is a host in which others call the sampler. So everything goes by wrappers: a node, or ``attach``, leaves one on a
``ModelPatcher`` (``_runs.Attachment``). When a sampler begins, ``_dry_run`` asks its own code which evaluations it will make,
``_noise_levels`` says which part of the whole schedule that is, ``_sources`` what is known of the model (``_model_presets``
which preset fits, ``_identity`` which calibrations) and ``_learning`` what it is taught, and a run begins. Each call of the
model is named by ComfyUI's ids of its conditions (``_streams``) and goes through ``_denoiser`` to the engine that all hosts on
torch share. ``nodes`` and ``server`` stand on top of that; below, imports run from ``_handle`` over ``_runs`` to the rest.

ComfyUI finds :data:`NODE_CLASS_MAPPINGS` here. Nothing of ComfyUI or torch is imported before somebody asks for it.
"""

import lazy_loader

# The core loads this package as a plugin with every run; ComfyUI is to be imported by those who use it.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
