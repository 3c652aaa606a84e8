"""Benchmarks of the project; results.yaml records their results."""
