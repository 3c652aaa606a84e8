"""Canonical listings of sources: written, compared with earlier ones, and cut into chunks.

It may import `retrieval.sources`, `retrieval.storage` and `retrieval.core`; `retrieval.training`
and `jobs` may import it.
"""
