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
    """Return a mask (n,) of the validation images, a `share` (0 to 1) of n images with `labels`.

    By image, each class is parted by its own seed, so that leaving one out does not part the others
    anew; at least one image of each trains, and one of each validates. By class, whole classes are
    held out, two of them at least, since only others of a class can be found; two train at least.
    Refused: what is too little for that.
    """
    names = sorted(set(labels))
    of_class = np.searchsorted(names, labels)
    held = np.zeros(len(labels), np.bool_)
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
        places = np.flatnonzero(of_class == number)
        if len(places) < 2:
            raise InputError(
                f"of class {name} of --data {len(places)} image can be read and training needs "
                "two; add some or --exclude-classes the class"
            )
        order = np.random.default_rng((seed, *name.encode())).permutation(len(places))
        count = min(max(1, round(share * len(places))), len(places) - 1)
        held[places[order[:count]]] = True
    return held
