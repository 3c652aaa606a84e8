"""Charts and picture grids: pure functions from tables and arrays to SVG and PNG.

Imported by `retrieval.report` and by the commands in `jobs` that draw pictures.
"""
