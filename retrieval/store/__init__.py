"""Vectors on disk, streamed, and brute force over them."""
