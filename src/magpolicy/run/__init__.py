"""A run: one pass over the steps, in which each evaluation is decided and the decision made final.

``_resolve`` checks what a user gives, and ``_config`` holds what it comes to: the rule, a plan, a fixed schedule, or
computing everything. ``_placing`` says where on the noise schedule a host's run lies. A session is the one mutable machine of
the core: it takes evaluations in order, answers each with a decision, and notes a trace; ``_call`` is what it answers an
adapter. ``simulate`` and ``sweep`` are the same run without a model, so that a preview and a run cannot differ.

Above ``planning/``. Hosts drive sessions; the command line and the test kit preview them.
"""
