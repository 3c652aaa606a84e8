"""Everything that turns the bytes of an image into a vector."""
