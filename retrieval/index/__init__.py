"""Sharded IVF: plan, centroids, shards, recall, search."""
