"""What workers answer and raise reaches the driver as it was said."""

import pytest

from jobs.cluster.actor_pool import stream
from jobs.cluster.resources import Cluster
from retrieval.core.errors import InputError, UsageError
from tests.jobs.light import doubled, refused, refusing

pytestmark = pytest.mark.usefixtures("ray_here")


def test_items_are_done_with_what_is_shared():
    answers = stream(Cluster(None, 2), doubled, [1, 2, 3], {"factor": 2}, "cpu")
    assert sorted(a["item"] for a in answers) == [1, 2, 3]
    answers = stream(Cluster(None, 1), doubled, [4], {"factor": 5}, "cpu")
    assert list(answers) == [{"item": 4, "double": 20}]


@pytest.mark.parametrize(
    ("make", "kind", "said"),
    [(refused, UsageError, "--precision bf16"), (refusing, InputError, "item 1 is missing")],
)
def test_a_refusal_is_the_workers_own(make, kind, said):
    with pytest.raises(kind, match=said):
        list(stream(Cluster(None, 1), make, [1], None, "cpu"))
