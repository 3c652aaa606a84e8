"""The linear classifier of a trained bundle, which predicts classes from unit vectors.

    classifier.safetensors   weight (classes, d) and bias (classes,), float32, of unit vectors
    classifier.json          the classes in their order, and the checksum of the other

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
"""Length that vectors are brought to while it learns: at 1 the softmax could never be sure."""


@dataclass(frozen=True, eq=False)
class Classifier:
    """Classes, and the weights that tell them: (c, d) and (c,) float32, for unit vectors."""

    names: tuple[str, ...]
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]

    def shares(self, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return (n, c) confidences of (n, d) vectors of unit length: each row adds up to 1."""
        logits = vectors.astype(np.float64) @ self.weight.astype(np.float64).T + self.bias
        logits -= logits.max(axis=1, keepdims=True)
        powers = np.exp(logits)
        found: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
        return found

    def files(self) -> dict[str, bytes]:
        """Return its files: the sealed note last."""
        data = save_safetensors({"weight": self.weight, "bias": self.bias})
        digest = hashlib.sha256(data).hexdigest()
        note = checksummed_json({"classes": list(self.names), "files": {WEIGHTS: digest}})
        return {WEIGHTS: data, NOTE: note}


def fit_classifier(
    embeddings: Tensor, classes: Tensor, names: tuple[str, ...], seed: int
) -> Classifier:
    """Learn to tell (n,) classes from (n, d) embeddings."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        learner = CrossEntropy(embeddings.shape[1], len(names))
    fit_linear_classifier(learner, _SCALE * functional.normalize(embeddings), classes, seed)
    told = learner.classifier
    weight, bias = (one.detach().numpy().copy() for one in (told.weight, told.bias))
    return Classifier(names, np.float32(_SCALE) * weight, bias)


def read_classifier(bundle: Folder) -> Classifier:
    """Read the classifier of what `lookalike train` wrote."""
    try:
        note, data = bundle.read(NOTE), bundle.read(WEIGHTS)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"{bundle.uri()} holds no classifier ({NOTE}); name what `lookalike train` wrote"
        ) from None
    values = parse_checksummed_json(note)
    if values is None or hashlib.sha256(data).hexdigest() != values["files"][WEIGHTS]:
        raise Damaged(f"{bundle.uri(WEIGHTS)} or {NOTE} was altered; train again")
    arrays = load_safetensors(data)
    return Classifier(tuple(values["classes"]), arrays["weight"], arrays["bias"])


def count_confusions(
    told: NDArray[np.int64], classes: NDArray[np.int64], names: tuple[str, ...]
) -> pa.Table:
    """Count which classes were taken for which others: table CONFUSION."""
    wrong = told != classes
    pairs, counts = np.unique(
        np.stack([classes[wrong], told[wrong]], axis=1).reshape(-1, 2), axis=0, return_counts=True
    )
    of = np.bincount(classes, minlength=len(names))
    order = np.lexsort((pairs[:, 1], pairs[:, 0], -counts))
    columns = [
        [names[label] for label in pairs[order, 0]], [names[other] for other in pairs[order, 1]],
        counts[order], of[pairs[order, 0]],
    ]  # fmt: skip
    return pa.table([pa.array(c, t) for c, t in zip(columns, CONFUSION.schema.types, strict=True)],
                    schema=CONFUSION.schema)  # fmt: skip
