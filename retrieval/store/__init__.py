"""Vector stores on disk: layout, segments, parts, reading, finishing and compaction.

It also contains brute-force search over a store. It may import `retrieval.storage`,
`retrieval.vectors` and `retrieval.core`; `retrieval.embedding`, `retrieval.index`,
`retrieval.search`, everything after them and `jobs` may import it.
"""
