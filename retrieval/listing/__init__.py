"""Canonical listings of sources: writing, comparison with earlier ones, and division into chunks.

It may import `retrieval.sources`, `retrieval.storage` and `retrieval.core`; `retrieval.training`
and `jobs` may import it.
"""
