"""Vocabulary shared by all packages: table schemas, records, errors, output layouts, intervals.

It imports nothing else of this project; every other package may import it.
"""
