"""What a user or a host's adapter holds: handles, runs, reports, and the ways in.

``_handle`` is what ``magpolicy.attach`` returns for a ``torch.nn.Module``, ``_run_step`` serves a loop of one's own,
``_branches`` ranks that evaluate a branch of guidance each.
``_attached`` and ``_host_run`` are what the handles of all hosts share, ``_known_models`` and ``_streams`` what their
tables and names share.

The top folder of the torch adapter. Hosts reach it through ``magpolicy_torch`` and ``magpolicy_torch.adapter``.
"""
