"""Similarity scores, exact top-k selection and the matrix products behind them.

`scoring` defines the score, `topk` finds the closest vectors, `matmul` multiplies cheaply with
error bounds, and `pair_collector` keeps the pairs that the bounds cannot exclude, by the compiled
loops of `pair_kernels`; `nearest_kernel` selects one row per query. `normalize` and
`float_conversions` are exact building blocks.
This package imports only `retrieval.core`; any package above `retrieval.core` may import it.
"""
