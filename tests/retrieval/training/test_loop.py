"""Tests of the training loop: convergence, best epoch, resuming, early stopping and errors."""

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
from tests.retrieval.training.sample_photos import TRANSFORM, draw_stripes, make_photo_split

PHOTOS, FEW_PHOTOS = make_photo_split(16, 8), make_photo_split(2, 2)
RECIPE = TrainingRecipe(
    epochs=2, batch=16, learning_rate=1e-3, backbone_lr_scale=0.1, schedule="cosine", patience=None,
    unfreeze="all", augmentations=VARIATIONS, seed=0,
)  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Limit PyTorch to one thread: synchronization dominates the time of such small networks."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def train(
    photos=PHOTOS, *, objective="cross-entropy", pretrained=False, resume_from=None, device="cpu",
    **changes,
):  # fmt: skip
    """Train on synthetic photos; return the final progress and that after each epoch."""
    recipe = replace(RECIPE, **changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        state = dict(registry.build_network("scratch").state_dict())
    source = registry.WeightSource("scratch", state, TRANSFORM)
    backbone = build_trainable_backbone(source, "avg", pretrained=pretrained, device=device)
    objective_module = make_objective(objective, 192, 3, recipe.seed)
    epochs: list[TrainingProgress] = []
    final = loop.train(
        backbone, objective_module, photos, recipe, resume_from=resume_from, on_epoch=epochs.append
    )
    assert not epochs or final is epochs[-1]
    return final, epochs


@pytest.fixture(scope="module")
def trained() -> TrainingProgress:
    return train(epochs=10, learning_rate=2e-3)[0]


def test_training_converges(trained):
    assert [epoch.epoch for epoch in trained.history] == list(range(1, 11))
    assert trained.history[-1].loss < 0.8 * trained.history[0].loss
    assert trained.best_epoch.top1 > 0.8  # 1/3 at random
    assert trained.best_epoch.map > 0.7
    assert trained.best_epoch.accuracy > 0.8


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", OBJECTIVES)
def test_training_on_gpu_is_resumed_on_cpu(name):
    on_gpu, _ = train(objective=name, pretrained=True, device="cuda", learning_rate=2e-3)
    assert all(not value.is_cuda for value in [*on_gpu.state.values(), *on_gpu.best.values()])
    resumed, _ = train(
        objective=name, pretrained=True, resume_from=on_gpu, epochs=6, learning_rate=2e-3
    )
    assert resumed.best_epoch.map > 0.65


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "cross-entropy"])
def test_every_objective_converges(name):
    pytest.importorskip("pytorch_metric_learning", reason="lookalike[metric] is not installed")
    progress, _ = train(objective=name, epochs=6, learning_rate=2e-3)
    assert progress.best_epoch.map > 0.65  # 0.35 at random
    assert progress.history[0].accuracy is None


def test_bundle_of_best_epoch_reproduces_validation_measures(trained):
    bundle = make_bundle(registry.WeightSource("scratch", trained.best, TRANSFORM), "avg", True)
    subset = PHOTOS.validation
    plan = EnginePlan("torch", "fp32", "cpu", len(subset))
    vectors = Embedder(bundle, plan).embed(list(subset.take(torch.arange(len(subset)))))
    assert vectors.shape == (24, 192)
    measures = evaluate_retrieval(torch.from_numpy(vectors), subset.classes, seed=0)
    assert measures == pytest.approx((trained.best_epoch.top1, trained.best_epoch.map), abs=1e-6)


def test_best_parameters_are_those_of_epoch_with_highest_map(monkeypatch):
    measures = iter([(0.9, 0.2), (0.1, 0.9), (0.5, 0.9), (0.4, 0.5)])
    monkeypatch.setattr(loop, "evaluate_retrieval", lambda *_, **__: next(measures))
    progress, epochs = train(epochs=4)
    assert progress.best_epoch.epoch == 3  # equal mAP, higher top-1
    states = [
        {k.removeprefix("body.body."): v for k, v in epoch.state.items() if k.startswith("body.")}
        for epoch in epochs
    ]
    key = "features.0.0.weight"
    assert torch.equal(progress.best[key], states[2][key])
    assert not torch.equal(progress.best[key], states[3][key])


def test_seed_determines_trained_bytes():
    first, second, other = (train(seed=seed)[0] for seed in (0, 0, 1))
    assert serialize_state(first.best) == serialize_state(second.best)
    assert first.history == second.history
    assert serialize_state(first.best) != serialize_state(other.best)


@pytest.mark.parametrize("pretrained", [False, True])
@pytest.mark.parametrize("schedule", ["cosine", "plateau"])
def test_resumed_training_gives_same_bytes(pretrained, schedule):
    options = {"epochs": 4, "pretrained": pretrained, "schedule": schedule}
    uninterrupted, epochs = train(**options)
    resumed, resumed_epochs = train(resume_from=epochs[1], **options)
    assert len(resumed_epochs) == 2
    assert resumed.history == uninterrupted.history
    assert serialize_state(resumed.best) == serialize_state(uninterrupted.best)
    assert serialize_state(resumed.state) == serialize_state(uninterrupted.state)


def test_resuming_finished_training_returns_it():
    finished, _ = train()
    assert train(resume_from=finished)[0] is finished


def test_training_keeps_global_random_state():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(epochs=1, pretrained=True)
    assert torch.equal(torch.rand(3), expected)


def test_frozen_backbone_is_unchanged_and_head_is_trained():
    progress, _ = train(pretrained=True, unfreeze="none", epochs=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        before = registry.build_network("scratch").state_dict()
    assert all(torch.equal(value, before[key]) for key, value in progress.best.items())
    assert progress.history[0].accuracy > 0.5  # a linear head on random features


def test_patience_stops_training_early(monkeypatch):
    measures = iter([(0, 0.2), (0, 0.5), (0, 0.4), (0, 0.5), (0, 0.3), (0, 0.9)])
    monkeypatch.setattr(loop, "evaluate_retrieval", lambda *_, **__: next(measures))
    assert len(train(epochs=6, patience=3)[0].history) == 5


@pytest.mark.parametrize(
    "photos", [PHOTOS, FEW_PHOTOS], ids=["during an epoch", "after the last step"]
)
def test_nan_loss_raises_and_names_learning_rate(photos):
    with pytest.raises(LookalikeError, match=r"in epoch 1; lower --learning-rate from 1e\+30"):
        train(photos, learning_rate=1e30)


def test_held_out_classes_are_measured_by_retrieval_only():
    photos = replace(PHOTOS, validation=draw_stripes(8, 32, 1, names=("x", "y", "z")))
    progress, _ = train(photos, epochs=1)
    assert progress.history[0].accuracy is None
    assert progress.history[0].map > 0


# --- batches --------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 16, 17, 33, 100])
def test_unbalanced_batches_cover_each_photo_once_in_batches_of_two_or_more(count):
    batches = draw_batches(
        torch.zeros(count, dtype=torch.int64), 16, torch.Generator(), balanced=False
    )
    assert sorted(torch.cat(batches).tolist()) == list(range(count))
    assert all(2 <= len(batch) <= 16 for batch in batches)


def test_balanced_batches_hold_several_photos_per_class():
    classes = torch.tensor([n for n in range(12) for _ in range(2 + n)])
    batches = draw_batches(classes, 16, torch.Generator().manual_seed(0), balanced=True)
    assert sorted(torch.cat(batches).tolist()) == list(range(len(classes)))
    for batch in batches:
        counts = np.bincount(classes[batch].numpy())
        assert len(counts[counts > 0]) >= 2, "several classes"
    single_photos = sum((np.bincount(classes[batch].numpy()) == 1).sum() for batch in batches)
    assert single_photos <= len(batches)
    assert max(map(len, batches)) <= 16 + 2 * PER_CLASS


# --- schedule -------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 10, 100])
def test_cosine_schedule_warms_up_and_decays_to_zero(steps):
    rates = [learning_rate_factor("cosine", step, steps, ()) for step in range(steps)]
    peak = rates.index(max(rates))
    assert rates[peak] == 1
    assert peak <= max(0, steps // 10)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert all(0 <= rate <= 1 for rate in rates)
    assert steps == 1 or rates[-1] == pytest.approx(0)


@pytest.mark.parametrize(
    ("measures", "plateaus"),
    [
        ([], 0),
        ([0.1, 0.2, 0.3], 0),
        ([0.3, 0.2, 0.1], 1),
        ([0.3, 0.2, 0.4, 0.3], 0),
        ([0.3, 0.3, 0.3, 0.3, 0.3], 2),
        ([0.3, 0.2, 0.1, 0.5, 0.4, 0.4], 2),
    ],
)
def test_each_plateau_decays_learning_rate_once(measures, plateaus):
    assert count_plateaus(measures) == plateaus
    assert learning_rate_factor("plateau", 50, 100, measures) == pytest.approx(0.85**plateaus)


def test_patience_counts_from_first_best_epoch():
    assert not should_stop_early([0.5, 0.4], None)
    assert not should_stop_early([0.5, 0.4], 2)
    assert should_stop_early([0.5, 0.5, 0.4], 2)
    assert not should_stop_early([], 1)


# --- validation -----------------------------------------------------------------------------------


def test_retrieval_measures_equal_hand_computed_values():
    angles = torch.tensor([0.0, 0.1, 0.25, 3.0])  # nearest: 1, 0, 1, 2
    embeddings = torch.stack([angles.cos(), angles.sin()], 1) * torch.tensor([[1.0], [9], [2], [5]])
    top1, precision = evaluate_retrieval(embeddings, torch.tensor([0, 0, 1, 1]), seed=0)
    assert top1 == (1 + 1 + 0 + 1) / 4
    # the only relevant image of each query is at rank 1, 1, 3 and 1
    assert precision == pytest.approx((1 + 1 + 1 / 3 + 1) / 4)


def test_duplicate_embeddings_count_as_matches():
    embeddings = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1], [0, 1]])
    assert evaluate_retrieval(embeddings, torch.tensor([0, 0, 1, 1, 1]), seed=0) == (1, 1)


def test_images_without_relevant_image_are_not_queries():
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
