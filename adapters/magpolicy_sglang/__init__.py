"""magpolicy for SGLang-diffusion: the engine loads it as a plugin, and the models' own step methods carry decisions out.

``_hooks`` is what the engine loads; ``_plugin`` is what the core loads. A request is a run (``_request_run``), and a call of a
model in it is evaluated through the model's Spectrum methods (``_seam``).
"""
