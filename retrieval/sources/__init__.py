"""Input sources: folders, path lists, tar files, Parquet and .npy, with one class per source kind.

It imports `core`, `storage` and `images`; `listing`, `store` and all later packages may import it.
"""
