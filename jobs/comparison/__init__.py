"""The `compare` command: backbones side by side, from metadata or on labelled images.

Imported by `jobs.cli` only.
"""
