"""Backbone providers: one class per model library, behind the interface in `base.py`.

Imported by `retrieval.models.registry` only.
"""
