"""`lookalike compare` without data: the list of backbones, and what is said of each."""

import subprocess
import sys

import pytest
from torchvision import models

from jobs.comparison import compare
from jobs.config.settings import CompareSettings
from retrieval.core.errors import UsageError
from retrieval.models.resolve import RANDOM, resolve_bundle
from tests.commands import lookalike

KEYS = ["backbone", "parameters", "dimension", "image_size", "gflops",
        "imagenet_top1", "imagenet_top5"]  # fmt: skip
SMALL = ["mobilenet_v3_small", "scratch", "shufflenet_v2_x0_5", "squeezenet1_1"]


def listed(names=None):
    return compare.start(CompareSettings(backbones=names))


def rows_of(result):
    return result.values["backbones"]


def test_all_of_torchvision_and_scratch_are_listed_by_name():
    names = [row["backbone"] for row in rows_of(listed())]
    assert names == sorted([*models.list_models(module=models), "scratch"])


def test_what_is_said_is_what_torchvision_says():
    for row in rows_of(listed()):
        assert list(row) == KEYS
        if row["backbone"] == "scratch":
            assert (row["gflops"], row["imagenet_top1"], row["imagenet_top5"]) == (None,) * 3
            continue
        weights = models.get_model_weights(row["backbone"]).DEFAULT
        accuracy = weights.meta["_metrics"]["ImageNet-1K"]
        assert row["parameters"] == weights.meta["num_params"]
        assert row["gflops"] == weights.meta["_ops"]
        assert row["imagenet_top1"] == pytest.approx(accuracy["acc@1"] / 100)
        assert row["imagenet_top5"] == pytest.approx(accuracy["acc@5"] / 100)
        assert [row["image_size"]] == weights.transforms().crop_size


@pytest.mark.parametrize("name", SMALL)
def test_the_dimension_and_the_side_are_those_of_the_bundle(name):
    """Of each family: tests/retrieval/models/test_registry.py."""
    bundle = resolve_bundle(
        backbone=name, weights=RANDOM, bundle=None, pooling="avg", normalize=True,
        image_size=None, resize=None, seed=0,
    )  # fmt: skip
    [row] = rows_of(listed(name))
    assert row["dimension"] == bundle.dimension
    assert row["image_size"] == bundle.transform.image_size


def test_a_list_is_limited_and_sorted():
    found = listed(" squeezenet1_1,scratch, resnet18,scratch ")
    assert [row["backbone"] for row in rows_of(found)] == ["resnet18", "scratch", "squeezenet1_1"]


@pytest.mark.parametrize("names", ["", " , "])
def test_a_list_of_nothing_is_refused(names):
    with pytest.raises(UsageError, match="--backbones names none; write a,b,c"):
        listed(names)


def test_models_of_timm_may_be_among_them():
    pytest.importorskip("timm", reason="timm is not installed")
    [one, two] = rows_of(listed("timm:test_resnet,resnet18"))
    assert (one["backbone"], two["backbone"]) == ("resnet18", "timm:test_resnet")
    assert (two["dimension"], two["image_size"], two["imagenet_top1"]) == (96, 160, None)


def test_the_table_is_aligned_and_fits_100_columns():
    lines = listed().lines
    assert max(map(len, lines)) <= 100
    heading, rows = lines[0], lines[1 : 2 + len(models.list_models(module=models))]
    for column in ("parameters", "dimension", "pixels", "GFLOPs", "top-1", "top-5"):
        end = heading.index(column) + len(column)
        cells = [row[:end].rsplit(" ", 1)[-1] for row in rows if len(row) >= end]
        assert all(cell.strip("%").replace(".", "", 1).isdigit() for cell in cells if cell)
        assert [row[end : end + 1] for row in rows if row[end : end + 1].strip()] == []


def test_as_a_command():
    shown = lookalike("compare", "--json", "--backbones", "resnet50,scratch")
    assert shown.code == 0
    one, two = shown.values["backbones"]
    assert one == {
        "backbone": "resnet50", "parameters": 25557032, "dimension": 2048, "image_size": 224,
        "gflops": 4.089, "imagenet_top1": 0.80858, "imagenet_top5": 0.95434,
    }  # fmt: skip
    assert two["backbone"] == "scratch"


def test_an_unknown_name_names_near_ones():
    ended = lookalike("compare", "--backbones", "scratch,resnet5")
    assert ended.code == 2
    assert "--backbones resnet5 is not known; did you mean resnet50" in ended.error


def test_neither_ray_nor_timm_is_loaded():
    code = (
        "import sys; from jobs.comparison import compare; from jobs.config import settings;"
        "compare.start(settings.CompareSettings());"
        "print([name for name in ('ray', 'timm') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
