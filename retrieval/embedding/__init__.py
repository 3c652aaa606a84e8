"""Turn the items of one chunk into one part of a store, and its failures into a ledger.

The vectors are embeddings of images or precomputed ones. It may import `retrieval.models`,
`retrieval.images`, `retrieval.sources`, `retrieval.store` and what those import; `jobs` may import
it.
"""
