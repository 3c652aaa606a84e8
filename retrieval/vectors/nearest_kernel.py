"""The compiled loop that selects the closest row of each query from a product.

Imported where it is needed (`compiled.py`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retrieval.vectors.compiled import compiled
from retrieval.vectors.pair_kernels import LANES, at_most, complete_keys, kth_lower_bound, reaches

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]


@compiled("void(f4[:, ::1], i8, f4[::1], f8[::1], f4[::1], i8[::1])")
def select_nearest(
    keys: Float32, count: int, squares: Float32, slack: Float64, scratch: Float32, nearest: Int64
) -> None:
    """Write the closest row of each query, (b,), or -1 where the error bound leaves several.

    `keys` (b, n) are the dot products of queries with `count` rows, padded to a multiple of
    `LANES`; they are changed. `squares` (count,) are the squared lengths of the rows for l2, else
    empty. A key is off by at most `slack` (b,), so a row that is closer than the one with the
    largest key has a key within twice the slack of it. `scratch` holds `LANES` numbers.
    """
    for i in range(len(keys)):
        row = keys[i]
        complete_keys(row, squares, count)
        low = at_most(np.float64(kth_lower_bound(row, 1, scratch)) - 2 * slack[i])
        candidates, position = 0, -1
        for start in range(0, len(row), LANES):
            group = row[start : start + LANES]
            if not reaches(group, low):
                continue
            for lane in range(LANES):
                if group[lane] >= low and start + lane < count:
                    candidates += 1
                    position = start + lane
        nearest[i] = position if candidates == 1 else -1
