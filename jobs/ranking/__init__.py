"""Orchestrate the `rank` command on the cluster: queries, search passes, matches, extra files.

The mathematics is in `retrieval.search`. Other commands and `jobs.commands` may import
`jobs.ranking.rank`; nothing in `retrieval` may import this package.
"""
