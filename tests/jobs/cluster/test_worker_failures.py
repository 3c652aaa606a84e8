"""The book of attempts and the watchdog's sentences, without Ray."""

import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.cluster import stall_detector
from jobs.cluster.stall_detector import said_of, waiting, watched
from jobs.cluster.worker_failures import MOST_DEATHS, AtHand, Attempts, Death, Told
from retrieval.core.errors import InputError, Stalled

IMAGES = [f"/photos/{number}.jpg" for number in range(6)]


def work(book, item=0, images=IMAGES, kills=lambda attempt, image: False):
    """Do an item as a pool does, again after each death; gives how often each image killed."""
    deaths = Counter()
    while True:
        begun = book.begin(item)
        if begun.refused:
            return "refused", deaths
        for image in images:
            if image in begun.given_up:
                continue
            book.note(item, image)
            if kills(begun.attempt, image):
                deaths[image] += 1
                break
        else:
            book.note(item, None)
            book.end(item)
            return begun.given_up, deaths


@settings(deadline=None)
@given(poison=st.sets(st.sampled_from(IMAGES), max_size=5))
def test_exactly_the_images_that_kill_each_time_are_given_up_in_three_deaths(poison):
    kills = lambda attempt, image: image in poison  # noqa: E731
    book = Attempts()
    work(book, 1)  # another chunk is sound
    given_up, deaths = work(book, kills=kills)
    assert given_up == poison
    assert all(number <= 3 for number in deaths.values())
    assert sum(deaths.values()) <= 2 * len(poison) + 1
    assert [death.image for death in book.told().deaths if death.guilty] == sorted(poison)
    assert not book.told().at_hand
    assert work(book, 2, kills=kills) == (poison, {})  # no other item pays for it again


@settings(deadline=None)
@given(killed=st.lists(st.sampled_from(IMAGES), max_size=6, unique=True))
def test_workers_that_are_killed_from_outside_cost_no_image(killed):
    left = set(killed)

    def kills(attempt, image):
        dies = image in left
        left.discard(image)
        return dies

    given_up, deaths = work(Attempts(), kills=kills)
    assert given_up == set()
    assert sum(deaths.values()) == len(killed)


def test_the_first_attempt_blames_nobody_since_images_are_read_ahead():
    given_up, _ = work(Attempts(), kills=lambda attempt, image: attempt < 3 and image == IMAGES[2])
    assert given_up == set()


def test_no_count_outlives_the_book():
    for _ in range(6):  # the whole job is killed at this image
        book = Attempts()
        assert book.begin(0).attempt == 1
        book.note(0, IMAGES[1])
    assert work(Attempts())[0] == set()


def test_a_lost_answer_is_no_death():
    book = Attempts()
    work(book)
    assert book.told().begun == 1
    assert book.begin(0).attempt == 1
    assert book.told().begun == 1
    assert book.told().deaths == []


def test_a_death_between_images_or_after_them_blames_none():
    book = Attempts()
    for _ in range(4):
        book.begin(0)
        book.note(0, IMAGES[5])
        book.note(0, None)
    assert [death.image for death in book.told().deaths] == [None] * 3


def test_what_kills_everywhere_is_refused_in_the_end():
    book = Attempts()
    at = iter(range(1000))
    ended, deaths = work(book, images=[next(at) for _ in range(100)],
                         kills=lambda attempt, image: image == 7 * attempt)  # fmt: skip
    assert ended == "refused"
    assert sum(deaths.values()) == MOST_DEATHS
    assert book.told().given_up == set()


def test_where_every_image_kills_it_is_not_the_images():
    book = Attempts()
    ended, deaths = work(book, kills=lambda attempt, image: True)
    assert ended == "refused"
    assert sum(deaths.values()) == 7  # not two for each image there is
    sound = Attempts(IMAGES[:3])  # given up by a step before, which was finished
    assert work(sound, kills=lambda attempt, image: image == IMAGES[4])[0] == {
        *IMAGES[:3],
        IMAGES[4],
    }


# --- the watchdog ---


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
    answers = watched(slowly(0, 6), Signs())
    assert next(answers) == 0
    with pytest.raises(Stalled, match=r"nothing has moved for \d s: a waits for b; what is fini"):
        next(answers)


@pytest.mark.usefixtures("soon")
def test_signs_of_life_and_answers_are_progress():
    assert list(watched(slowly(2.2), Signs(*[True] * 20))) == [0]
    assert list(watched(slowly(*[0.3] * 5), Signs())) == list(range(5))


def test_an_error_is_passed_on():
    def failing():
        yield 1
        raise InputError("no photo")

    with pytest.raises(InputError, match="no photo"):
        list(watched(failing(), Signs()))


def told(begun, *at_hand):
    return Told(5, begun, list(at_hand), [], frozenset())


NOBODY = (
    "no worker has begun, 3 workers of 0.5 CPU wait for a place (2 of 2 booked), or die of too "
    "little memory before they begin"
)


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (None, NOBODY),
        (told(0), NOBODY),
        (told(2), "7 of 9 pieces of work wait for 3 workers of 0.5 CPU (2 of 2 booked)"),
        (
            told(2, AtHand(4, "/p/a.jpg", 12.0), AtHand(5, "/p/b.jpg", 301.4)),
            "chunk 5 waits for /p/b.jpg, or an image soon after it, since 301 s (2 of 2 booked)",
        ),
        (
            told(1, AtHand(4, None, 300.0)),
            "chunk 4 is at hand and does not answer since 300 s (2 of 2 booked)",
        ),
    ],
)
def test_it_is_said_what_waits_for_what(state, said):
    assert waiting(state, "chunk {}".format, 9, "3 workers of 0.5 CPU", "2 of 2 booked") == said


@pytest.mark.parametrize(
    ("death", "said"),
    [
        (Death(1, None, False), "a worker died in chunk 1: trying again, one image at a time"),
        (Death(1, "/a", False), "a worker died at /a (chunk 1): trying again, one image at a time"),
        (Death(1, "/a", True), "a worker died again at /a (chunk 1): it goes to the ledger unread"),
    ],
)
def test_a_death_is_said(death, said):
    assert said_of(death, "chunk 1") == said
