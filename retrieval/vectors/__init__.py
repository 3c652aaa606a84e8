"""Similarity scores, exact top-k selection and the matrix products behind them.

`scoring` defines the score, `topk` finds the closest vectors, `matmul` and `int8_matmul` propose
candidates cheaply with error bounds, `normalize` and `float_conversions` are exact building blocks.
This package imports only `retrieval.core`; any package above `retrieval.core` may import it.
"""
