"""The nodes: what a user of ComfyUI sees.

A node translates. Its inputs have the names and the order that workflows of ComfyUI-MagCache were saved with (``_inputs``,
``_preset_menu``); what they mean is a ``Settings``, and the node leaves that on a clone of the model, in an ``Attachment``.
Nothing is decided here, and no tensor of a model is seen: when the clone is sampled, ``_runs`` does the rest and hands back a
report, which ``_report`` tells the log and the browser, and ``_picture`` draws. Only ``server`` and the package's front
import this folder.
"""
