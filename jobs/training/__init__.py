"""The `train` command: training here or on the cluster, and the files it writes.

Imported by `jobs.cli` and `jobs.commands.demo`.
"""
