"""Which blocks make up a model's depth, and where hidden states are among what each is given and returns.

A *stack* is the list of blocks that a model runs one after another. :class:`~magpolicy_torch.BlockStack` finds it, or is told;
:class:`~magpolicy_torch.Layout` says which argument of a block holds the hidden states, and where text tokens stand among
them. What neither says is seen in the first call that is computed, by ``evaluation``, and is kept as a ``ForwardPattern`` for
each block. Nothing in this folder calls a model or keeps a tensor. It imports nothing of the other folders.
"""
