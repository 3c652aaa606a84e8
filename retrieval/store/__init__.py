"""Vector stores on disk: layout, segments, parts, reading, finishing and compaction.

Brute-force search over a store is here as well. It may import `retrieval.storage`,
`retrieval.vectors` and `retrieval.core`; `retrieval.embedding`, `retrieval.index`,
`retrieval.search`, everything after them and `jobs` may import it.
"""
