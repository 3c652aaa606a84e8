"""HTML pages, charts and pictures that present matches and comparisons.

Contains the page templates, the selection of what a page shows, thumbnails, and charts (`charts/`).
Imported by `jobs.reporting`, `jobs.comparison` and `jobs.training`; imports
`retrieval.evaluation` and the packages below it.
"""
