"""Assembly of reports: evaluated matches are turned into an HTML page, its files, and pictures.

Contains the `report` command and the report writing that `run`, `rank` and `plan` share. Imported
by `jobs.commands`, `jobs.ranking` and `jobs.planning`; drawing itself is in `retrieval.report`.
"""
