"""The `rank` command on the cluster: queries, search passes, matches and extra files.

The algorithms are in `retrieval.search`. Other commands and `jobs.commands` may import
`jobs.ranking.rank`; nothing in `retrieval` may import this package.
"""
