"""Write colour histograms of photos as vectors, a baseline for networks.

python -m benchmarks.histograms PHOTOS OUT.parquet

Histograms have 8 x 8 x 8 bins of red, green and blue. Vectors are the square roots of the shares,
so their dot product is the Bhattacharyya coefficient. `lookalike index --embeddings OUT.parquet`
reads them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image, ImageOps

SIDE = 8
BINS = SIDE**3


def histogram(path: Path) -> NDArray[np.float32]:
    """Return the histogram of a photo as a (512,) float32 vector of unit length."""
    with Image.open(path) as photo:
        image = ImageOps.exif_transpose(photo).convert("RGB")
    bins = np.asarray(image).reshape(-1, 3) // (256 // SIDE)
    counts = np.bincount(bins @ [SIDE * SIDE, SIDE, 1], minlength=BINS)
    shares: NDArray[np.float32] = np.sqrt(counts / counts.sum()).astype(np.float32)
    return shares


def main() -> None:
    """Write the histograms of all JPEG photos below a folder, with the image_ids of `lookalike`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path)
    parser.add_argument("output")
    arguments = parser.parse_args()
    paths = sorted(arguments.photos.rglob("*.jpg"))
    vectors = np.concatenate([histogram(path) for path in paths])
    columns = {
        "image_id": [path.relative_to(arguments.photos).as_posix() for path in paths],
        "embedding": pa.FixedSizeListArray.from_arrays(vectors, BINS),
    }
    pq.write_table(pa.table(columns), arguments.output)


if __name__ == "__main__":
    main()
