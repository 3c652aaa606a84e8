"""Reading a range of rows from a Parquet file that may be larger than memory."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from retrieval.storage.local import Folder


def read_rows(folder: Folder, path: str, first: int, last: int) -> pa.Table:
    """Return the rows first <= row < last of a file, reading only the row groups that contain them.

    Each page is verified by its own checksum; the whole file was verified when the job started.
    """
    with folder.open(path) as file:
        parquet = pq.ParquetFile(file, page_checksum_verification=True)
        start, groups = 0, []
        groups_start = None
        for number in range(parquet.num_row_groups):
            rows = parquet.metadata.row_group(number).num_rows
            if start < last and start + rows > first:
                groups.append(number)
                groups_start = start if groups_start is None else groups_start
            start += rows
        table = parquet.read_row_groups(groups)
    return table.slice(first - (groups_start or 0), last - first)
