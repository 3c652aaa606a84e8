"""Test that results and errors of workers reach the driver unchanged."""

import pytest

from jobs.cluster.actor_pool import stream
from jobs.cluster.resources import Cluster
from retrieval.core.errors import InputError, UsageError
from tests.jobs.cluster.worker_functions import (
    multiply_by_factor,
    raise_during_setup,
    raise_during_work,
)

pytestmark = pytest.mark.usefixtures("local_ray")


def test_items_are_processed_with_the_shared_value():
    results = stream(Cluster(None, 2), multiply_by_factor, [1, 2, 3], {"factor": 2}, "cpu")
    assert sorted(a["item"] for a in results) == [1, 2, 3]
    results = stream(Cluster(None, 1), multiply_by_factor, [4], {"factor": 5}, "cpu")
    assert list(results) == [{"item": 4, "double": 20}]


@pytest.mark.parametrize(
    ("make_work", "error", "message"),
    [
        (raise_during_setup, UsageError, "--precision bf16"),
        (raise_during_work, InputError, "item 1 is missing"),
    ],
)
def test_error_of_a_worker_is_raised(make_work, error, message):
    with pytest.raises(error, match=message):
        list(stream(Cluster(None, 1), make_work, [1], None, "cpu"))
