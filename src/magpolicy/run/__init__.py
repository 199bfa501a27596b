"""A run: one pass over the steps, in which each evaluation is decided and the decision made final.

``_config`` checks the settings and resolves them to what decides: the rule, a plan, a fixed schedule, or computing
everything. A session is the one mutable machine of the core: it takes evaluations in order, answers each with a decision,
and notes a trace. ``simulate`` and ``sweep`` are the same run without a model, so that a preview and a run cannot differ.

Above ``planning/``. Hosts drive sessions; the command line and the test kit preview them.
"""
