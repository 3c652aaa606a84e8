"""Labelled drawings of animals for the demo, benchmarks and offline trials."""

from retrieval.samples.animals import SPECIES, draw
from retrieval.samples.dataset import HELD_OUT, write_samples

__all__ = ["HELD_OUT", "SPECIES", "draw", "write_samples"]
