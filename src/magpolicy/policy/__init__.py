"""The rule: which step of a run is computed, and which is skipped.

A model's residual, what its blocks add to their input, grows or shrinks from step to step by a ratio that hardly depends on
the prompt. A *curve* holds these ratios, one list a stream, from a calibration. A *policy* multiplies them along a run of
skips; as long as the product stays near 1, the residual of the last computed step still serves. It computes again when the
accumulated error passes ``threshold``, when ``max_skips`` steps were skipped in a row, or when nothing was computed yet;
the leading share ``retention`` always computes. Published implementations read the same rule in different ways: *semantics*
say in which, as data.

Read ``_decision``, ``_semantics``, ``_curve``, ``_step_table``, ``_policy``, in this order; nothing else of magpolicy is
needed to understand them. Everything above may import from here; this folder imports nothing but the checks of arguments.
"""
