"""Tests that a store in which an image is neither a row nor a failure is refused as damaged."""

from dataclasses import replace

import numpy as np
import pytest

from retrieval.core.errors import Damaged, TooManyFailures
from retrieval.storage.local import open_folder
from retrieval.store.finalize import finish_store
from retrieval.store.layout import segment_json_path
from retrieval.store.segment import read_segments
from tests.sample_stores import write_store


@pytest.fixture
def unfinished(tmp_path):
    """Return a store of ten vectors without its manifest."""
    write_store(tmp_path / "store", np.ones((10, 4), np.float16))
    (tmp_path / "store/manifest.json").unlink()
    return open_folder(str(tmp_path / "store"))


def test_image_without_row_or_failure_is_damage(unfinished):
    (segment,) = read_segments(unfinished)
    unfinished.put(segment_json_path(0), replace(segment, images=11).to_json())
    with pytest.raises(Damaged, match="10 rows and 0 failures for 11 images"):
        finish_store(unfinished, 4, (), 1.0)


def test_store_without_failures_is_finished(unfinished):
    manifest = finish_store(unfinished, 4, (), 0.0)
    assert (manifest.counts["rows"], manifest.counts["failures"]) == (10, 0)


def test_store_without_vectors_raises_too_many_failures(tmp_path):
    with pytest.raises(TooManyFailures, match="0 of 0 images failed"):
        write_store(tmp_path / "none", np.ones((0, 4), np.float16))
