"""Building of a sharded IVF index: plan, k-means centroids, shards, recall curve, export, audit.

This package imports `core`, `storage`, `vectors`, `store` and `models`; `search` and the packages
above it (`evaluation`, `report`, `training`, `planning`, `jobs`) may import it.
"""
