"""Plugins: who is installed, and calling them so that one that fails does no harm to the rest.

``_registry`` finds the plugins of the entry-point group ``magpolicy`` when somebody first asks for one, and calls their
hooks one by one; ``_observers`` tells those that watch runs what happens in one. Which hooks there are and what their
values mean is said in ``magpolicy.hookspecs``. The folder is not called ``plugins``, because a subpackage of that name
would hide the function.

It stands below all the rest and knows none of it: values that plugins give are checked where they are used, presets in
``catalog/``, handles in ``hosts/``.
"""
