"""One short module per command that has no package of its own.

Imported by `jobs.cli` only.
"""
