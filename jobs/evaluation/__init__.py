"""The `evaluate` command: ground truth from options, evaluation of finished matches, formatting.

Imported by `jobs.reporting`, `jobs.planning`, `jobs.comparison`, `jobs.ranking` and
`jobs.commands`; imports the cluster-free parts of `jobs` and `retrieval.evaluation`.
"""
