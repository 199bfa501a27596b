"""Who calls a model, and when: handles, runs as a host sees them, streams' names, reports, and the ways in for users.

``evaluation`` carries out one call. A host says which run a call belongs to, at which step it is, and what its streams are
called. Here is what all hosts on torch share for that, and the two hosts that need nothing but torch:
:func:`magpolicy.attach` for a module in the user's own loop, and :func:`~magpolicy_torch.run_step`. Adapters for other hosts
(ours for diffusers and ComfyUI, a stranger's) import from :mod:`magpolicy_torch.adapter`. Imports all other folders, and none
of them imports this one.
"""
