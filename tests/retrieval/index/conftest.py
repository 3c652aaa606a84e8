"""Shared fixtures of the tests of indexes."""

from collections.abc import Iterator

import pytest

from retrieval.index import recall_interval


@pytest.fixture(autouse=True, scope="module")
def fewer_draws(request: pytest.FixtureRequest) -> Iterator[None]:
    """Take a tenth of the random draws, into which half the time of building a small index goes.

    Tests of the intervals themselves take all of them.
    """
    with pytest.MonkeyPatch.context() as patch:
        if "recall_" not in request.module.__name__:
            patch.setattr(recall_interval, "DRAWS", 1000)
        yield
