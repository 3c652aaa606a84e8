"""Search an index for query vectors and turn the candidates of all shards into ranked matches.

Contains probing, the exact IVF search of a shard, proposals and rescoring for lossy codes, filters,
exclusions, query expansion, the recall certificate, merging and export formats. May import
`retrieval.core`, `storage`, `vectors`, `store` and `index`; is imported by `retrieval.evaluation`,
`retrieval.report` and `jobs`.
"""
