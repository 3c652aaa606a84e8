"""The library of lookalike: plain functions and small frozen dataclasses, usable in a notebook.

Nothing here prints, parses arguments or knows Ray; `jobs/` starts it.
"""
