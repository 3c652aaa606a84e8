"""Decode, check, repair and resize images: from encoded bytes to uint8 arrays.

It imports `core` and `storage`; `sources` and all later packages may import it.
"""
