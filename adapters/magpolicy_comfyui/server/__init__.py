"""What the panel in a node asks ComfyUI's server: which steps would compute and which would be skipped.

A preview answers before anything is sampled. The noise levels come from ComfyUI's own schedulers, the evaluations from a dry
run of its own samplers, the settings from the node's inputs; so it goes the way of a run, and ends where the model would be
called. This is the top of the package: it imports from ``nodes`` and below, and only ``_pack`` imports it.
"""
