"""Test that updates of a store recover from a fault at any storage operation."""

from types import SimpleNamespace

import pytest

from tests.fault_loop import FaultLoopTests
from tests.file_tree import read_tree
from tests.jobs.in_process import without_ray
from tests.jobs.initial_states import INITIAL_STATES


@pytest.fixture(scope="module")
def scenario(request, tmp_path_factory):
    """Return a finished store and a run that changes it."""
    with without_ray():
        state = INITIAL_STATES[request.param](tmp_path_factory.mktemp(request.param))
        initial_files = read_tree(state.root / "before")
        yield SimpleNamespace(
            initial_files=initial_files, run=lambda folder: state.run(folder.uri())
        )


class TestStoreUpdateFaults(FaultLoopTests):
    SCENARIOS = ("changed_source", "recovered_source", "compact")
    LOCAL_MIN_POINTS, S3_MIN_POINTS = 300, 100
