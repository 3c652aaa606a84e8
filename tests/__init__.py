"""Tests; the folders mirror `jobs/` and `retrieval/`."""
