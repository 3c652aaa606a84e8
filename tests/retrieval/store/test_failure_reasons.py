"""Tests of the most common failure reason, its example and its remedy."""

import pytest

from retrieval.storage.local import open_folder
from retrieval.store.failure_reasons import commonest_reason
from retrieval.store.part_writer import encode_ledger


def reason_for_failures(root, *failures):
    """Return `commonest_reason` of (path, error, message) failures, in ledgers of two entries."""
    folder = open_folder(str(root))
    entries = [
        {"row": row, "image_id": path, "path": path, "stage": "read", "error": error,
         "message": message, "label": None}
        for row, (path, error, message) in enumerate(failures)
    ]  # fmt: skip
    paths = [f"{first}.parquet" for first in range(0, len(entries), 2)]
    for first, path in zip(range(0, len(entries), 2), paths, strict=True):
        folder.put(path, encode_ledger(entries[first : first + 2]))
    return commonest_reason(folder, paths)


def missing_file(path):
    """Return the (path, error, message) of a file that does not exist."""
    return path, "FileNotFoundError", f"[Errno 2] No such file or directory: '{path}'"


def test_reasons_that_differ_in_names_and_numbers_are_grouped(tmp_path):
    other_failure = ("/z.jpg", "OSError", "broken data stream")
    reason = reason_for_failures(
        tmp_path,
        missing_file("/a/1.jpg"),
        other_failure,
        missing_file("/a/2.jpg"),
        missing_file("/b/30.jpg"),
    )
    assert reason.startswith("3 of them as /a/1.jpg ([Errno 2] No such file")
    assert "--image-column" in reason


def test_no_failures_yield_no_reason(tmp_path):
    assert reason_for_failures(tmp_path) is None


@pytest.mark.parametrize(
    ("failure", "remedy"),
    [
        (missing_file("/l/a.jpg;cat"), "separated by ';', write it with commas"),
        (missing_file("/l/a.jpg\tcat"), "separated by tabs"),
        (missing_file("/l/red shoes"), "--image-column names the column"),
        (("a", "DecompressionBombError", "9 x 9 pixels exceed"), "--max-pixels allows larger"),
        (("npy://0::x.npy", "ValueError", "too large for float16; give --embedding-dtype float32"),
         "give --embedding-dtype float32"),
        (("a.jpg", "UnidentifiedImageError", "this is a HEIC image; use pillow-heif"),
         "pillow-heif"),
    ],
)  # fmt: skip
def test_reason_contains_remedy(tmp_path, failure, remedy):
    assert remedy in reason_for_failures(tmp_path, failure)
