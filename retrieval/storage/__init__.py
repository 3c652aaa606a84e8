"""Reading and writing files, locally and on object stores, and publishing folders atomically.

It imports `core` only; every package but `core` may import it.
"""
