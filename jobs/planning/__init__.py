"""The `plan` command: measure a sample, then estimate the cost of the whole job.

Imported by `jobs.cli` only.
"""
