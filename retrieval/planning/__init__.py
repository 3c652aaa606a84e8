"""Cost model of `lookalike plan`: pure arithmetic, no measurement.

Imported by `jobs.planning` only.
"""
