"""What the tests of all engines share: fetching one without its dependencies, and asking a process that has it imported.

:mod:`.fetching` and :mod:`.asking` are for the tests; :mod:`.answering` is the program of that process.
"""
