"""The split into training and validation photos, by image or by whole classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from retrieval.core.errors import InputError

SplitBy = Literal["image", "class"]


def choose_validation(
    labels: Sequence[str], *, by: SplitBy, share: float, seed: int
) -> NDArray[np.bool_]:
    """Return a mask, (n,) bool, of the validation images among n images with `labels`.

    `share` (0 to 1) is the share of validation images, or of validation classes.

    By image, each class is split with its own seed, so that excluding one class does not change the
    split of the others; each class keeps at least one training and one validation image. By class,
    whole classes are held out; at least two train and two validate. Raises InputError where there
    are too few images or classes for that.
    """
    names = sorted(set(labels))
    of_class = np.searchsorted(names, labels)
    is_validation = np.zeros(len(labels), np.bool_)
    if by == "class":
        order = np.random.default_rng((seed, *b"classes")).permutation(len(names))
        count = max(2, round(share * len(names)))
        if len(names) - count < 2:
            raise InputError(
                f"--split-by class needs four classes of readable images and --data has "
                f"{len(names)}; add some, or --split-by image"
            )
        return np.isin(of_class, order[:count])
    for number, name in enumerate(names):
        positions = np.flatnonzero(of_class == number)
        if len(positions) < 2:
            raise InputError(
                f"of class {name} of --data {len(positions)} image can be read and training needs "
                "two; add some or --exclude-classes the class"
            )
        order = np.random.default_rng((seed, *name.encode())).permutation(len(positions))
        count = min(max(1, round(share * len(positions))), len(positions) - 1)
        is_validation[positions[order[:count]]] = True
    return is_validation
