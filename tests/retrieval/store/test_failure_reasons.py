"""Tests of the most common failure reason, its example and its remedy."""

import pytest

from retrieval.storage.local import open_folder
from retrieval.store.failure_reasons import commonest_reason
from retrieval.store.reader import encode_ledger


def reason_of(root, *failures):
    """What is said of (path, error, message) failures, in ledgers of two lines each."""
    folder = open_folder(str(root))
    lines = [
        {"row": row, "image_id": path, "path": path, "stage": "read", "error": error,
         "message": message, "label": None}
        for row, (path, error, message) in enumerate(failures)
    ]  # fmt: skip
    paths = [f"{first}.parquet" for first in range(0, len(lines), 2)]
    for first, path in zip(range(0, len(lines), 2), paths, strict=True):
        folder.put(path, encode_ledger(lines[first : first + 2]))
    return commonest_reason(folder, paths)


def gone(path):
    return path, "FileNotFoundError", f"[Errno 2] No such file or directory: '{path}'"


def test_reasons_that_differ_in_names_and_numbers_are_one(tmp_path):
    odd = ("/z.jpg", "OSError", "broken data stream")
    found = reason_of(tmp_path, gone("/a/1.jpg"), odd, gone("/a/2.jpg"), gone("/b/30.jpg"))
    assert found.startswith("3 of them as /a/1.jpg ([Errno 2] No such file")
    assert "--image-column" in found


def test_without_a_line_there_is_no_reason(tmp_path):
    assert reason_of(tmp_path) is None


@pytest.mark.parametrize(
    ("failure", "remedy"),
    [
        (gone("/l/a.jpg;cat"), "separated by ';', write it with commas"),
        (gone("/l/a.jpg\tcat"), "separated by tabs"),
        (gone("/l/red shoes"), "--image-column names the column"),
        (("a", "DecompressionBombError", "9 x 9 pixels exceed"), "--max-pixels allows larger"),
        (("npy://0::x.npy", "ValueError", "too large for float16; give --embedding-dtype float32"),
         "give --embedding-dtype float32"),
        (("a.jpg", "UnidentifiedImageError", "this is a HEIC image; use pillow-heif"),
         "pillow-heif"),
    ],
)  # fmt: skip
def test_what_helps_is_said(tmp_path, failure, remedy):
    assert remedy in reason_of(tmp_path, failure)
