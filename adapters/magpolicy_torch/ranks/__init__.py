"""Several processes that run one model together decide alike: which ranks these are, and what they tell one another.

A decision reads no activations, so ranks with the same settings decide alike without a word. They talk once when a run begins,
to compare what they decide by, and where something is measured: a calibration, what runs teach, a safeguard, residuals that are
not finite. A skip says nothing. ``residuals``, ``evaluation`` and ``host`` import this folder, and it imports none of them.
"""
