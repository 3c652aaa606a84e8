"""The failure log, the stall detector and their messages, without Ray."""

import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.cluster import stall_detector
from jobs.cluster.stall_detector import format_wait, format_worker_death, watch_for_stalls
from jobs.cluster.worker_failures import (
    MAX_DEATHS,
    AttemptSummary,
    FailureLog,
    RunningItem,
    WorkerDeath,
)
from retrieval.core.errors import InputError, Stalled

IMAGES = [f"/photos/{number}.jpg" for number in range(6)]


def process(failure_log, item=0, images=IMAGES, kills=lambda attempt, image: False):
    """Process an item as a pool does, with retries.

    `kills(attempt, image)` tells whether an image kills its worker. Return the quarantined images
    (or "refused") and the number of deaths by image.
    """
    deaths = Counter()
    while True:
        start = failure_log.begin(item)
        if start.refused:
            return "refused", deaths
        for image in images:
            if image in start.quarantined_images:
                continue
            failure_log.note(item, image)
            if kills(start.attempt, image):
                deaths[image] += 1
                break
        else:
            failure_log.note(item, None)
            failure_log.end(item)
            return start.quarantined_images, deaths


@settings(deadline=None)
@given(killing_images=st.sets(st.sampled_from(IMAGES), max_size=5))
def test_exactly_the_killing_images_are_quarantined_within_three_deaths(killing_images):
    kills = lambda attempt, image: image in killing_images  # noqa: E731
    failure_log = FailureLog()
    process(failure_log, 1)  # a chunk without deaths
    quarantined_images, deaths = process(failure_log, kills=kills)
    assert quarantined_images == killing_images
    assert all(number <= 3 for number in deaths.values())
    assert sum(deaths.values()) <= 2 * len(killing_images) + 1
    assert [death.image for death in failure_log.summary().deaths if death.quarantined] == sorted(
        killing_images
    )
    assert not failure_log.summary().running
    assert process(failure_log, 2, kills=kills) == (
        killing_images,
        {},
    )  # other items skip the quarantined images


@settings(deadline=None)
@given(killed=st.lists(st.sampled_from(IMAGES), max_size=6, unique=True))
def test_externally_killed_workers_quarantine_no_image(killed):
    remaining = set(killed)

    def kills(attempt, image):
        is_killed = image in remaining
        remaining.discard(image)
        return is_killed

    quarantined_images, deaths = process(FailureLog(), kills=kills)
    assert quarantined_images == set()
    assert sum(deaths.values()) == len(killed)


def test_death_in_the_first_attempt_is_attributed_to_no_image():
    quarantined_images, _ = process(
        FailureLog(), kills=lambda attempt, image: attempt < 3 and image == IMAGES[2]
    )
    assert quarantined_images == set()


def test_new_failure_log_starts_without_counts():
    for _ in range(6):  # the job is killed at this image each time
        failure_log = FailureLog()
        assert failure_log.begin(0).attempt == 1
        failure_log.note(0, IMAGES[1])
    assert process(FailureLog())[0] == set()


def test_lost_result_is_not_a_death():
    failure_log = FailureLog()
    process(failure_log)
    assert failure_log.summary().begun == 1
    assert failure_log.begin(0).attempt == 1
    assert failure_log.summary().begun == 1
    assert failure_log.summary().deaths == []


def test_death_between_images_is_attributed_to_no_image():
    failure_log = FailureLog()
    for _ in range(4):
        failure_log.begin(0)
        failure_log.note(0, IMAGES[5])
        failure_log.note(0, None)
    assert [death.image for death in failure_log.summary().deaths] == [None] * 3


def test_item_is_refused_after_the_maximum_number_of_deaths():
    failure_log = FailureLog()
    numbers = iter(range(1000))
    outcome, deaths = process(failure_log, images=[next(numbers) for _ in range(100)],
                         kills=lambda attempt, image: image == 7 * attempt)  # fmt: skip
    assert outcome == "refused"
    assert sum(deaths.values()) == MAX_DEATHS
    assert failure_log.summary().quarantined_images == set()


def test_item_whose_every_image_kills_is_refused():
    failure_log = FailureLog()
    outcome, deaths = process(failure_log, kills=lambda attempt, image: True)
    assert outcome == "refused"
    assert sum(deaths.values()) == 7  # instead of two for each image
    later_log = FailureLog(IMAGES[:3])  # quarantined by an earlier stage
    assert process(later_log, kills=lambda attempt, image: image == IMAGES[4])[0] == {
        *IMAGES[:3],
        IMAGES[4],
    }


# --- the stall detector ---


class FakePool:
    def __init__(self, *moves):
        self.moves = list(moves)

    def has_activity(self):
        return self.moves.pop(0) if self.moves else False

    def describe_wait(self):
        return "a waits for b"


def delayed(*seconds):
    for number, delay in enumerate(seconds):
        time.sleep(delay)
        yield number


@pytest.fixture
def short_stall(monkeypatch):
    monkeypatch.setattr(stall_detector, "STALL_SECONDS", 1.0)


@pytest.mark.usefixtures("short_stall")
def test_stall_is_raised_with_a_description():
    results = watch_for_stalls(delayed(0, 6), FakePool())
    assert next(results) == 0
    with pytest.raises(Stalled, match=r"no progress for \d s: a waits for b; finished work"):
        next(results)


@pytest.mark.usefixtures("short_stall")
def test_activity_and_results_reset_the_stall_timer():
    assert list(watch_for_stalls(delayed(2.2), FakePool(*[True] * 20))) == [0]
    assert list(watch_for_stalls(delayed(*[0.3] * 5), FakePool())) == list(range(5))


def test_error_is_passed_on():
    def failing():
        yield 1
        raise InputError("no photo")

    with pytest.raises(InputError, match="no photo"):
        list(watch_for_stalls(failing(), FakePool()))


def summary(started, *running):
    return AttemptSummary(5, started, list(running), [], frozenset())


NO_WORKER_STARTED = (
    "no worker has begun, 3 workers of 0.5 CPU wait for resources (2 of 2 booked), or die of too "
    "little memory before they begin"
)


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (None, NO_WORKER_STARTED),
        (summary(0), NO_WORKER_STARTED),
        (summary(2), "7 of 9 work items wait for 3 workers of 0.5 CPU (2 of 2 booked)"),
        (
            summary(2, RunningItem(4, "/p/a.jpg", 12.0), RunningItem(5, "/p/b.jpg", 301.4)),
            "chunk 5 has waited for /p/b.jpg, or an image soon after it, for 301 s (2 of 2 booked)",
        ),
        (
            summary(1, RunningItem(4, None, 300.0)),
            "chunk 4 has sent no message for 300 s (2 of 2 booked)",
        ),
    ],
)
def test_format_wait(state, expected):
    assert (
        format_wait(state, "chunk {}".format, 9, "3 workers of 0.5 CPU", "2 of 2 booked")
        == expected
    )


@pytest.mark.parametrize(
    ("death", "expected"),
    [
        (
            WorkerDeath(1, None, False),
            "a worker died in chunk 1: trying again, one image at a time",
        ),
        (
            WorkerDeath(1, "/a", False),
            "a worker died at /a (chunk 1): trying again, one image at a time",
        ),
        (
            WorkerDeath(1, "/a", True),
            "a worker died again at /a (chunk 1): the image is skipped and recorded in the ledger",
        ),
    ],
)
def test_format_worker_death(death, expected):
    assert format_worker_death(death, "chunk 1") == expected
