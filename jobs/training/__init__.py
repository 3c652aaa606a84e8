"""The `train` command: training in this process or on a cluster, and the files it writes.

Imported by `jobs.cli` and `jobs.commands.demo`.
"""
