"""Some rows of a Parquet file that may be larger than memory."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from retrieval.storage.local import Folder


def read_rows(folder: Folder, path: str, first: int, last: int) -> pa.Table:
    """Read the rows at places first <= place < last, touching only the row groups they lie in.

    Each page is checked against its own checksum; the whole file was checked by whoever started
    the job.
    """
    with folder.open(path) as file:
        parquet = pq.ParquetFile(file, page_checksum_verification=True)
        start, groups = 0, []
        base = None
        for number in range(parquet.num_row_groups):
            rows = parquet.metadata.row_group(number).num_rows
            if start < last and start + rows > first:
                groups.append(number)
                base = start if base is None else base
            start += rows
        table = parquet.read_row_groups(groups)
    return table.slice(first - (base or 0), last - first)
