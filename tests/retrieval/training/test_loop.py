"""The loop: it learns, keeps the best epoch, is the same twice, and stops when it diverges."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from retrieval.errors import LookalikeError
from retrieval.model import backbones
from retrieval.model.bundle import pack
from retrieval.model.embedding import Embedder
from retrieval.model.plan import EnginePlan
from retrieval.model.resolve import make_bundle
from retrieval.training import loop
from retrieval.training.data import Part, Photos

SIDE = 32
TRANSFORM = backbones.first_preset("scratch", image_size=SIDE, resize="crop")
NAMES = ("across", "along", "plain")


def stripes(each: int, side: int, seed: int) -> Part:
    """Draw stripes that run across or along, or none, in any colours, with noise."""
    rng = np.random.default_rng(seed)
    pixels, classes = [], []
    for number in range(each * len(NAMES)):
        wave = np.sin(np.arange(side) * rng.uniform(0.6, 1.2) + rng.uniform(0, 6))
        field = (wave[:, None], wave[None, :], 0)[number % 3] + np.zeros((side, side))
        low, high = rng.uniform(60, 110, 3), rng.uniform(130, 200, 3)
        image = low + (high - low) * (field[..., None] + 1) / 2 + rng.normal(0, 6, (side, side, 3))
        pixels.append(torch.from_numpy(image.clip(0, 255).astype(np.uint8)).permute(2, 0, 1))
        classes.append(number % 3)
    ids = tuple(str(number) for number in range(len(pixels)))
    return Part(torch.stack(pixels), torch.tensor(classes), ids)


PHOTOS = Photos(NAMES, stripes(16, 36, 0), stripes(8, SIDE, 1), ())
SMALL = Photos(NAMES, stripes(2, 36, 0), stripes(2, SIDE, 1), ())


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Let threads not wait for one another, which costs these small networks most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def train(photos: Photos = PHOTOS, **given) -> loop.Trained:
    said: list[loop.Epoch] = []
    settings = {"epochs": 2, "learning_rate": 1e-3, "seed": 0, "on_epoch": said.append, **given}
    trained = loop.train(photos, TRANSFORM, **settings)
    assert trained.history == tuple(said)
    return trained


@pytest.fixture(scope="module")
def learnt() -> loop.Trained:
    return train(epochs=10, learning_rate=2e-3)


def test_it_learns(learnt):
    assert [epoch.epoch for epoch in learnt.history] == list(range(1, 11))
    assert learnt.history[-1].loss < 0.8 * learnt.history[0].loss
    assert learnt.best.top1 > 0.8  # a third by chance
    assert learnt.best.accuracy > 0.8


def test_the_best_epoch_is_the_one_that_retrieves_best(learnt):
    best = max(learnt.history, key=lambda epoch: (epoch.top1, epoch.accuracy, epoch.epoch))
    assert learnt.best == best


def test_a_bundle_of_it_embeds_as_was_measured(learnt):
    bundle = make_bundle("scratch", backbones.Source(learnt.state, TRANSFORM), "avg", True)
    plan = EnginePlan("torch", "fp32", "cpu", len(PHOTOS.validation.pixels))
    vectors = Embedder(bundle, plan).embed(list(PHOTOS.validation.pixels))
    assert vectors.shape == (24, 192)
    assert loop.top1(torch.from_numpy(vectors), PHOTOS.validation.classes) == learnt.best.top1


def test_the_kept_parameters_are_those_of_the_best_epoch(monkeypatch):
    shares = iter([0.2, 0.9, 0.5])
    monkeypatch.setattr(loop, "top1", lambda embeddings, classes: next(shares))
    states = []
    clone = loop._look
    monkeypatch.setattr(
        loop, "_look", lambda network, *rest: (
            states.append({k: v.clone() for k, v in network.state_dict().items()}),
            clone(network, *rest),
        )[1],
    )  # fmt: skip
    trained = train(epochs=3)
    assert trained.best.epoch == 2
    assert pack(trained.state) == pack(states[1]) != pack(states[2])


def test_the_same_seed_gives_the_same_bytes_and_another_one_others():
    first, again, other = train(), train(), train(seed=1)
    assert pack(first.state) == pack(again.state)
    assert first.history == again.history
    assert pack(first.state) != pack(other.state)


def test_what_the_caller_draws_stays_as_it_was():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(epochs=1)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("photos", [PHOTOS, SMALL], ids=["while learning", "after the last step"])
def test_a_loss_that_is_no_number_stops_it_and_names_the_learning_rate(photos):
    with pytest.raises(LookalikeError, match=r"in epoch 1, .* --learning-rate 1e\+30 "):
        train(photos, learning_rate=1e30)


def test_no_batch_is_a_single_photo():
    photos = PHOTOS.training
    for count in (2, loop.BATCH, loop.BATCH + 1, 2 * loop.BATCH + 1):
        part = Part(photos.pixels[:count], photos.classes[:count], photos.image_ids[:count])
        sizes = [len(b) for b in torch.arange(count).tensor_split(loop._batches(part))]
        assert min(sizes) >= 2
        assert max(sizes) <= loop.BATCH
    train(Photos(NAMES, part, PHOTOS.validation, ()), epochs=1)


@pytest.mark.parametrize("steps", [1, 2, 10, 100])
def test_the_rate_rises_and_falls_to_nothing(steps):
    rates = [loop.rate(step, steps) for step in range(steps)]
    top = rates.index(max(rates))
    assert rates[top] == 1
    assert top <= max(0, steps // 10)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert all(0 <= rate <= 1 for rate in rates)
    assert steps == 1 or rates[-1] == pytest.approx(0)


def test_top1_by_hand():
    angles = torch.tensor([0.0, 0.1, 0.25, 3.0])  # nearest: 1, 0, 1, 2
    embeddings = torch.stack([angles.cos(), angles.sin()], 1) * torch.tensor([[1.0], [9], [2], [5]])
    assert loop.top1(embeddings, torch.tensor([0, 0, 1, 1])) == (1 + 1 + 0 + 1) / 4


def test_an_equal_photo_is_another_photo():
    embeddings = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1], [0, 1]])
    assert loop.top1(embeddings, torch.tensor([0, 0, 1, 1, 1])) == 1
    assert loop.top1(embeddings, torch.tensor([0, 1, 0, 1, 2])) == 0


def test_top1_as_the_plain_way_has_it():
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(60, 8)).astype(np.float32)
    classes = rng.integers(0, 4, 60)
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -2)
    expected = (classes[cosines.argmax(1)] == classes).mean()
    assert loop.top1(torch.from_numpy(embeddings), torch.from_numpy(classes)) == expected
