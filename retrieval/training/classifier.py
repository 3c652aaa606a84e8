"""The linear classifier of a trained bundle, which predicts classes from unit vectors.

    classifier.safetensors   weight (classes, d) and bias (classes,), float32, of unit vectors
    classifier.json          the classes in order, and the checksum of the weights

It is fitted on the finished embeddings, whatever the objective was, so that it fits the vectors of
a store.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors
from torch import Tensor
from torch.nn import functional

from retrieval.core.errors import Damaged, InputError
from retrieval.core.schemas import CONFUSION
from retrieval.storage.checksum import checksummed_json, parse_checksummed_json
from retrieval.storage.local import Folder
from retrieval.training.loop import fit_linear_classifier
from retrieval.training.objectives import CrossEntropy

NOTE, WEIGHTS = "classifier.json", "classifier.safetensors"

_SCALE = 16.0
"""Length of vectors during training: at length 1 the softmax could not become confident."""


@dataclass(frozen=True, eq=False)
class Classifier:
    """Classes, with weight (c, d) and bias (c,) float32 of a linear classifier of unit vectors."""

    names: tuple[str, ...]
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]

    def shares(self, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the (n, c) softmax confidences of (n, d) vectors of unit length."""
        logits = vectors.astype(np.float64) @ self.weight.astype(np.float64).T + self.bias
        logits -= logits.max(axis=1, keepdims=True)
        powers = np.exp(logits)
        confidences: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
        return confidences

    def files(self) -> dict[str, bytes]:
        """Return the files by name; the JSON file with the checksum comes last."""
        data = save_safetensors({"weight": self.weight, "bias": self.bias})
        digest = hashlib.sha256(data).hexdigest()
        note = checksummed_json({"classes": list(self.names), "files": {WEIGHTS: digest}})
        return {WEIGHTS: data, NOTE: note}


def fit_classifier(
    embeddings: Tensor, classes: Tensor, names: tuple[str, ...], seed: int
) -> Classifier:
    """Fit a linear classifier of (n, d) embeddings to (n,) class numbers, indices into `names`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        learner = CrossEntropy(embeddings.shape[1], len(names))
    fit_linear_classifier(learner, _SCALE * functional.normalize(embeddings), classes, seed)
    layer = learner.classifier
    weight, bias = (parameter.detach().numpy().copy() for parameter in (layer.weight, layer.bias))
    return Classifier(names, np.float32(_SCALE) * weight, bias)


def read_classifier(bundle: Folder) -> Classifier:
    """Read the classifier of an output of `lookalike train`.

    Raises InputError where there is none, Damaged where a checksum does not match.
    """
    try:
        note, data = bundle.read(NOTE), bundle.read(WEIGHTS)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"{bundle.uri()} holds no classifier ({NOTE}); specify an output of `lookalike train`"
        ) from None
    values = parse_checksummed_json(note)
    if values is None or hashlib.sha256(data).hexdigest() != values["files"][WEIGHTS]:
        raise Damaged(f"{bundle.uri(WEIGHTS)} or {NOTE} was altered; train again")
    arrays = load_safetensors(data)
    return Classifier(tuple(values["classes"]), arrays["weight"], arrays["bias"])


def count_confusions(
    predicted: NDArray[np.int64], classes: NDArray[np.int64], names: tuple[str, ...]
) -> pa.Table:
    """Count misclassifications by class and predicted class: table CONFUSION, most frequent first.

    `predicted` and `classes` are (n,) class numbers.
    """
    misclassified = predicted != classes
    pairs, counts = np.unique(
        np.stack([classes[misclassified], predicted[misclassified]], axis=1).reshape(-1, 2),
        axis=0,
        return_counts=True,
    )
    class_sizes = np.bincount(classes, minlength=len(names))
    order = np.lexsort((pairs[:, 1], pairs[:, 0], -counts))
    columns = [
        [names[label] for label in pairs[order, 0]], [names[label] for label in pairs[order, 1]],
        counts[order], class_sizes[pairs[order, 0]],
    ]  # fmt: skip
    return pa.table([pa.array(c, t) for c, t in zip(columns, CONFUSION.schema.types, strict=True)],
                    schema=CONFUSION.schema)  # fmt: skip
