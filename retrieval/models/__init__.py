"""Backbones, their weights, and the engines that turn image tensors into embeddings.

`registry` resolves a backbone name to a provider (`providers/`), `bundle` stores a model with
everything that shapes its vectors, `engines` and `embedder` run it. Imports `core`, `storage` and
`vectors`; imported by `embedding`, `training` and everything after them in the pipeline.
"""
