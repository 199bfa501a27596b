"""The one place where a call of a model is decided and carried out.

:func:`~magpolicy_torch.evaluate` asks the session what a call does, has its *target* compute or skip, takes or makes
residuals, and commits. A target is what is called: a function (``run_step``), or a model with a stack (``HostModel``).

A model's first computed call of a kind (shapes, switches, optional arguments) is *observed*: probes stand in the place of its
blocks, and what they saw becomes a ``CallSpec``. From then on *parts* stand in the place of some blocks. Taps note what enters
and what leaves the stack of a computed call. Skips return what the stack would. Parts are mounted in a *shadow* of the module,
which shares everything with it but the blocks, so that nothing is changed on the module; or, where its forward is wrapped by
somebody who would call the module's own, by patches on the blocks while the call lasts.

Imports ``blocks``, ``residuals`` and ``device``; only ``host`` imports this folder.
"""
