"""The user's files: how they are named, read and written.

A file may come from anybody, and may be anything: reading one is bounded in bytes, nesting and digits, and ends in one kind
of error.
Writing one is all or nothing.
"""
