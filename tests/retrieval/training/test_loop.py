"""The loop: it learns, keeps the best epoch, goes on to the same bytes, and stops when it must."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from retrieval.core.errors import LookalikeError
from retrieval.models import registry
from retrieval.models.bundle import serialize_state
from retrieval.models.embedder import Embedder
from retrieval.models.engine_plan import EnginePlan
from retrieval.models.resolve import make_bundle
from retrieval.training import loop
from retrieval.training.augmentation import VARIATIONS
from retrieval.training.batches import PER_CLASS, draw_batches
from retrieval.training.loop import EpochResult, TrainingProgress, TrainingRecipe
from retrieval.training.network import build_trainable_backbone
from retrieval.training.objectives import OBJECTIVES, make_objective
from retrieval.training.schedule import count_plateaus, learning_rate_factor, should_stop_early
from retrieval.training.validation import evaluate_retrieval
from tests.retrieval.training.shapes import TRANSFORM, photos_of, stripes

PHOTOS, SMALL = photos_of(16, 8), photos_of(2, 2)
RECIPE = TrainingRecipe(
    epochs=2, batch=16, learning_rate=1e-3, backbone_lr_scale=0.1, schedule="cosine", patience=None,
    unfreeze="all", varied=VARIATIONS, seed=0,
)  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Let threads not wait for one another, which costs these small networks most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def train(
    photos=PHOTOS, *, objective="cross-entropy", pretrained=False, before=None, device="cpu",
    **given,
):  # fmt: skip
    recipe = replace(RECIPE, **given)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        state = dict(registry.build_network("scratch").state_dict())
    source = registry.WeightSource(state, TRANSFORM)
    body = build_trainable_backbone("scratch", source, "avg", pretrained=pretrained, device=device)
    asked = make_objective(objective, 192, 3, recipe.seed)
    said: list[TrainingProgress] = []
    found = loop.train(body, asked, photos, recipe, before=before, on_epoch=said.append)
    assert not said or found is said[-1]
    train.said = said
    return found


@pytest.fixture(scope="module")
def learnt() -> TrainingProgress:
    return train(epochs=10, learning_rate=2e-3)


def test_it_learns(learnt):
    assert [epoch.epoch for epoch in learnt.history] == list(range(1, 11))
    assert learnt.history[-1].loss < 0.8 * learnt.history[0].loss
    assert learnt.best_epoch.top1 > 0.8  # a third by chance
    assert learnt.best_epoch.map > 0.7
    assert learnt.best_epoch.accuracy > 0.8


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_gpu_learns_and_hands_out_what_a_cpu_goes_on_from(name):
    found = train(objective=name, pretrained=True, device="cuda", learning_rate=2e-3)
    assert all(not value.is_cuda for value in [*found.state.values(), *found.best.values()])
    further = train(objective=name, pretrained=True, before=found, epochs=6, learning_rate=2e-3)
    assert further.best_epoch.map > 0.65


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "cross-entropy"])
def test_every_objective_learns(name):
    pytest.importorskip("pytorch_metric_learning", reason="lookalike[metric] is not installed")
    found = train(objective=name, epochs=6, learning_rate=2e-3)
    assert found.best_epoch.map > 0.65  # 0.35 by chance
    assert found.history[0].accuracy is None


def test_a_bundle_of_it_embeds_as_was_measured(learnt):
    bundle = make_bundle("scratch", registry.WeightSource(learnt.best, TRANSFORM), "avg", True)
    part = PHOTOS.validation
    plan = EnginePlan("torch", "fp32", "cpu", len(part))
    vectors = Embedder(bundle, plan).embed(list(part.take(torch.arange(len(part)))))
    assert vectors.shape == (24, 192)
    found = evaluate_retrieval(torch.from_numpy(vectors), part.classes, seed=0)
    assert found == pytest.approx((learnt.best_epoch.top1, learnt.best_epoch.map), abs=1e-6)


def test_the_kept_parameters_are_those_of_the_best_epoch_by_map(monkeypatch):
    qualities = iter([(0.9, 0.2), (0.1, 0.9), (0.5, 0.9), (0.4, 0.5)])
    monkeypatch.setattr(loop, "evaluate_retrieval", lambda *_, **__: next(qualities))
    found = train(epochs=4)
    assert found.best_epoch.epoch == 3  # of equal mAP the one of more top-1
    states = [
        {k.removeprefix("body.body."): v for k, v in one.state.items() if k.startswith("body.")}
        for one in train.said
    ]
    key = "features.0.0.weight"
    assert torch.equal(found.best[key], states[2][key])
    assert not torch.equal(found.best[key], states[3][key])


def test_the_same_seed_gives_the_same_bytes_and_another_one_others():
    first, again, other = train(), train(), train(seed=1)
    assert serialize_state(first.best) == serialize_state(again.best)
    assert first.history == again.history
    assert serialize_state(first.best) != serialize_state(other.best)


@pytest.mark.parametrize("pretrained", [False, True])
@pytest.mark.parametrize("schedule", ["cosine", "plateau"])
def test_a_run_that_goes_on_ends_with_the_same_bytes(pretrained, schedule):
    asked = {"epochs": 4, "pretrained": pretrained, "schedule": schedule}
    whole = train(**asked)
    halfway = train.said[1]
    rest = train(before=halfway, **asked)
    assert len(train.said) == 2
    assert rest.history == whole.history
    assert serialize_state(rest.best) == serialize_state(whole.best)
    assert serialize_state(rest.state) == serialize_state(whole.state)


def test_a_finished_run_that_goes_on_does_nothing():
    whole = train()
    assert train(before=whole) is whole


def test_what_the_caller_draws_stays_as_it_was():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(epochs=1, pretrained=True)
    assert torch.equal(torch.rand(3), expected)


def test_a_frozen_body_stays_and_its_head_learns_first():
    found = train(pretrained=True, unfreeze="none", epochs=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        before = registry.build_network("scratch").state_dict()
    assert all(torch.equal(value, before[key]) for key, value in found.best.items())
    assert found.history[0].accuracy > 0.5  # of random features a head tells some


def test_patience_ends_it(monkeypatch):
    qualities = iter([(0, 0.2), (0, 0.5), (0, 0.4), (0, 0.5), (0, 0.3), (0, 0.9)])
    monkeypatch.setattr(loop, "evaluate_retrieval", lambda *_, **__: next(qualities))
    assert len(train(epochs=6, patience=3).history) == 5


@pytest.mark.parametrize("photos", [PHOTOS, SMALL], ids=["while learning", "after the last step"])
def test_a_loss_that_is_no_number_stops_it_and_names_the_learning_rate(photos):
    with pytest.raises(LookalikeError, match=r"in epoch 1, .* --learning-rate 1e\+30 "):
        train(photos, learning_rate=1e30)


def test_held_out_classes_are_judged_by_retrieval_alone():
    photos = replace(PHOTOS, validation=stripes(8, 32, 1, names=("x", "y", "z")))
    found = train(photos, epochs=1)
    assert found.history[0].accuracy is None
    assert found.history[0].map > 0


# --- batches ------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 16, 17, 33, 100])
def test_plain_batches_hold_every_photo_once_and_none_is_a_single_one(count):
    found = draw_batches(
        torch.zeros(count, dtype=torch.int64), 16, torch.Generator(), balanced=False
    )
    assert sorted(torch.cat(found).tolist()) == list(range(count))
    assert all(2 <= len(one) <= 16 for one in found)


def test_balanced_batches_give_each_photo_company():
    classes = torch.tensor([n for n in range(12) for _ in range(2 + n)])
    found = draw_batches(classes, 16, torch.Generator().manual_seed(0), balanced=True)
    assert sorted(torch.cat(found).tolist()) == list(range(len(classes)))
    for one in found:
        counts = np.bincount(classes[one].numpy())
        assert len(counts[counts > 0]) >= 2, "several classes"
    alone = sum((np.bincount(classes[one].numpy()) == 1).sum() for one in found)
    assert alone <= len(found)
    assert max(map(len, found)) <= 16 + 2 * PER_CLASS


# --- schedule -----------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 10, 100])
def test_the_cosine_rises_and_falls_to_nothing(steps):
    rates = [learning_rate_factor("cosine", step, steps, ()) for step in range(steps)]
    top = rates.index(max(rates))
    assert rates[top] == 1
    assert top <= max(0, steps // 10)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert all(0 <= share <= 1 for share in rates)
    assert steps == 1 or rates[-1] == pytest.approx(0)


@pytest.mark.parametrize(
    ("qualities", "decays"),
    [
        ([], 0),
        ([0.1, 0.2, 0.3], 0),
        ([0.3, 0.2, 0.1], 1),
        ([0.3, 0.2, 0.4, 0.3], 0),
        ([0.3, 0.3, 0.3, 0.3, 0.3], 2),
        ([0.3, 0.2, 0.1, 0.5, 0.4, 0.4], 2),
    ],
)
def test_a_plateau_multiplies_the_rate_once(qualities, decays):
    assert count_plateaus(qualities) == decays
    assert learning_rate_factor("plateau", 50, 100, qualities) == pytest.approx(0.85**decays)


def test_patience_counts_from_the_first_of_the_best():
    assert not should_stop_early([0.5, 0.4], None)
    assert not should_stop_early([0.5, 0.4], 2)
    assert should_stop_early([0.5, 0.5, 0.4], 2)
    assert not should_stop_early([], 1)


# --- judged -------------------------------------------------------------------------------------


def test_retrieval_by_hand():
    angles = torch.tensor([0.0, 0.1, 0.25, 3.0])  # nearest: 1, 0, 1, 2
    embeddings = torch.stack([angles.cos(), angles.sin()], 1) * torch.tensor([[1.0], [9], [2], [5]])
    top1, precision = evaluate_retrieval(embeddings, torch.tensor([0, 0, 1, 1]), seed=0)
    assert top1 == (1 + 1 + 0 + 1) / 4
    # the one right image of each is at rank 1, 1, 3 and 1
    assert precision == pytest.approx((1 + 1 + 1 / 3 + 1) / 4)


def test_an_equal_photo_is_another_photo():
    embeddings = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1], [0, 1]])
    assert evaluate_retrieval(embeddings, torch.tensor([0, 0, 1, 1, 1]), seed=0) == (1, 1)


def test_one_of_its_kind_does_not_look():
    embeddings = torch.tensor([[1.0, 0], [1, 0], [0, 1]])
    assert evaluate_retrieval(embeddings, torch.tensor([0, 0, 1]), seed=0) == (1, 1)
    assert evaluate_retrieval(embeddings, torch.tensor([0, 1, 2]), seed=0) == (0, 0)


def test_epochs_are_ordered_by_map_then_top1():
    epochs = [
        EpochResult(1, 0, 0, 0.9, 0.5),
        EpochResult(2, 0, 0, 0.1, 0.6),
        EpochResult(3, 0, 0, 0.1, 0.6),
    ]
    assert TrainingProgress(tuple(epochs), {}, {}).best_epoch.epoch == 2
