"""Planning: the best schedule for a calibrated run, found before it begins.

A *target* says what is wanted: a speedup, a number of computed steps or a bound on the error, and what the plan makes
least. A *problem* is a run at its noise levels, with the error of every possible skip in tables. The planner searches the
shortest path through these tables, improves it step by step where errors add up along the latent's way (*trajectory*), and
gives a schedule. ``_refine`` lets real runs decide between schedules; ``_safeguard`` compares a run with its plan while it
goes on, and plans the rest again.

Above ``catalog/`` and below ``run/``: a plan knows nothing of sessions.
"""
