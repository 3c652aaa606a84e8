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


def work(failure_log, item=0, images=IMAGES, kills=lambda attempt, image: False):
    """Process an item as a pool does, with retries; return the quarantine and deaths by image."""
    deaths = Counter()
    while True:
        begun = failure_log.begin(item)
        if begun.refused:
            return "refused", deaths
        for image in images:
            if image in begun.given_up:
                continue
            failure_log.note(item, image)
            if kills(begun.attempt, image):
                deaths[image] += 1
                break
        else:
            failure_log.note(item, None)
            failure_log.end(item)
            return begun.given_up, deaths


@settings(deadline=None)
@given(poison=st.sets(st.sampled_from(IMAGES), max_size=5))
def test_exactly_the_images_that_kill_each_time_are_given_up_in_three_deaths(poison):
    kills = lambda attempt, image: image in poison  # noqa: E731
    failure_log = FailureLog()
    work(failure_log, 1)  # another chunk is sound
    given_up, deaths = work(failure_log, kills=kills)
    assert given_up == poison
    assert all(number <= 3 for number in deaths.values())
    assert sum(deaths.values()) <= 2 * len(poison) + 1
    assert [death.image for death in failure_log.summary().deaths if death.quarantined] == sorted(
        poison
    )
    assert not failure_log.summary().running
    assert work(failure_log, 2, kills=kills) == (poison, {})  # no other item pays for it again


@settings(deadline=None)
@given(killed=st.lists(st.sampled_from(IMAGES), max_size=6, unique=True))
def test_workers_that_are_killed_from_outside_cost_no_image(killed):
    left = set(killed)

    def kills(attempt, image):
        dies = image in left
        left.discard(image)
        return dies

    given_up, deaths = work(FailureLog(), kills=kills)
    assert given_up == set()
    assert sum(deaths.values()) == len(killed)


def test_the_first_attempt_blames_nobody_since_images_are_read_ahead():
    given_up, _ = work(
        FailureLog(), kills=lambda attempt, image: attempt < 3 and image == IMAGES[2]
    )
    assert given_up == set()


def test_no_count_outlives_the_failure_log():
    for _ in range(6):  # the whole job is killed at this image
        failure_log = FailureLog()
        assert failure_log.begin(0).attempt == 1
        failure_log.note(0, IMAGES[1])
    assert work(FailureLog())[0] == set()


def test_a_lost_answer_is_no_death():
    failure_log = FailureLog()
    work(failure_log)
    assert failure_log.summary().begun == 1
    assert failure_log.begin(0).attempt == 1
    assert failure_log.summary().begun == 1
    assert failure_log.summary().deaths == []


def test_a_death_between_images_or_after_them_blames_none():
    failure_log = FailureLog()
    for _ in range(4):
        failure_log.begin(0)
        failure_log.note(0, IMAGES[5])
        failure_log.note(0, None)
    assert [death.image for death in failure_log.summary().deaths] == [None] * 3


def test_what_kills_everywhere_is_refused_in_the_end():
    failure_log = FailureLog()
    at = iter(range(1000))
    ended, deaths = work(failure_log, images=[next(at) for _ in range(100)],
                         kills=lambda attempt, image: image == 7 * attempt)  # fmt: skip
    assert ended == "refused"
    assert sum(deaths.values()) == MAX_DEATHS
    assert failure_log.summary().given_up == set()


def test_where_every_image_kills_it_is_not_the_images():
    failure_log = FailureLog()
    ended, deaths = work(failure_log, kills=lambda attempt, image: True)
    assert ended == "refused"
    assert sum(deaths.values()) == 7  # not two for each image there is
    sound = FailureLog(IMAGES[:3])  # given up by a step before, which was finished
    assert work(sound, kills=lambda attempt, image: image == IMAGES[4])[0] == {
        *IMAGES[:3],
        IMAGES[4],
    }


# --- the stall detector ---


class Signs:
    def __init__(self, *moves):
        self.moves = list(moves)

    def moved(self):
        return self.moves.pop(0) if self.moves else False

    def waiting(self):
        return "a waits for b"


def slowly(*seconds):
    for number, each in enumerate(seconds):
        time.sleep(each)
        yield number


@pytest.fixture
def soon(monkeypatch):
    monkeypatch.setattr(stall_detector, "STALL_SECONDS", 1.0)


@pytest.mark.usefixtures("soon")
def test_a_wait_without_any_sign_of_life_ends_and_says_for_what():
    answers = watch_for_stalls(slowly(0, 6), Signs())
    assert next(answers) == 0
    with pytest.raises(Stalled, match=r"nothing has moved for \d s: a waits for b; what is fini"):
        next(answers)


@pytest.mark.usefixtures("soon")
def test_signs_of_life_and_answers_are_progress():
    assert list(watch_for_stalls(slowly(2.2), Signs(*[True] * 20))) == [0]
    assert list(watch_for_stalls(slowly(*[0.3] * 5), Signs())) == list(range(5))


def test_an_error_is_passed_on():
    def failing():
        yield 1
        raise InputError("no photo")

    with pytest.raises(InputError, match="no photo"):
        list(watch_for_stalls(failing(), Signs()))


def summary(begun, *running):
    return AttemptSummary(5, begun, list(running), [], frozenset())


NOBODY = (
    "no worker has begun, 3 workers of 0.5 CPU wait for a place (2 of 2 booked), or die of too "
    "little memory before they begin"
)


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (None, NOBODY),
        (summary(0), NOBODY),
        (summary(2), "7 of 9 work items wait for 3 workers of 0.5 CPU (2 of 2 booked)"),
        (
            summary(2, RunningItem(4, "/p/a.jpg", 12.0), RunningItem(5, "/p/b.jpg", 301.4)),
            "chunk 5 waits for /p/b.jpg, or an image soon after it, since 301 s (2 of 2 booked)",
        ),
        (
            summary(1, RunningItem(4, None, 300.0)),
            "chunk 4 is being processed and does not answer since 300 s (2 of 2 booked)",
        ),
    ],
)
def test_the_wait_of_a_pool_is_described(state, said):
    assert format_wait(state, "chunk {}".format, 9, "3 workers of 0.5 CPU", "2 of 2 booked") == said


@pytest.mark.parametrize(
    ("death", "said"),
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
def test_a_worker_death_is_reported(death, said):
    assert format_worker_death(death, "chunk 1") == said
