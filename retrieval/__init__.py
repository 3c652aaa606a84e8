"""Library for batch image retrieval: plain functions and frozen dataclasses, usable in a notebook.

Nothing here prints, parses arguments or uses Ray; `jobs/` orchestrates it on a cluster.
"""
