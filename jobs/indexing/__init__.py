"""The index stage: from a vector store, or precomputed vectors, to a sharded IVF index.

It may import `jobs.embedding` (precomputed vectors pass through a store), `jobs.cluster`,
`jobs.config`, `jobs.runtime` and `retrieval`; the commands, `jobs.ranking`, `jobs.reporting` and
`jobs.planning` may import it.
"""
