"""Presets: curves and settings that go by a name, and where they come from.

``_presets`` is the value. Presets ship as data (``_shipped``), are read from a file (``_file``), lie in the user's folder
(``_folder``), or are offered by plugins (``_offered``); ``_listing`` is all of them in one mapping, ``_matching`` says
which one a name means, and what comes close where it means none. The folder is not called ``presets``, because a subpackage
of that name would hide the function.

Above ``calibration/``: a calibration in a file is a preset too. Plans, runs and hosts import it. It learns of plugins from
the registry; the registry knows nothing of presets.
"""
