"""Tests of the choice of engine, precision and device from options and available hardware."""

import subprocess
import sys

import pytest

from retrieval.core.errors import UsageError
from retrieval.models import engine_plan
from retrieval.models.engine_plan import EnginePlan, plan_engine


@pytest.fixture(params=[True, False], ids=["openvino installed", "openvino missing"])
def installed(request, monkeypatch):
    monkeypatch.setattr(engine_plan, "openvino_installed", lambda: request.param)
    return request.param


def make_plan(*, gpus=False, **requested):
    options = {"engine": None, "precision": None, "device": None, "batch_size": None, **requested}
    return plan_engine(**options, gpus=gpus)


def test_cpu_default_is_openvino_if_installed(installed):
    engine = "openvino" if installed else "torch"
    assert make_plan() == EnginePlan(engine, "fp32", "cpu", engine_plan.BATCH_CPU)


def test_gpu_is_used_if_available(installed):
    assert make_plan(gpus=True) == EnginePlan("torch", "bf16", "cuda", engine_plan.BATCH_GPU)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"engine": "torch"}, ("torch", "fp32", "cpu", engine_plan.BATCH_CPU)),
        ({"batch_size": 7}, ("openvino", "fp32", "cpu", 7)),
        ({"precision": "bf16"}, ("openvino", "bf16", "cpu", engine_plan.BATCH_CPU)),
        ({"device": "cpu", "gpus": True}, ("openvino", "fp32", "cpu", engine_plan.BATCH_CPU)),
        ({"engine": "openvino", "gpus": True}, ("openvino", "fp32", "cpu", engine_plan.BATCH_CPU)),
        ({"precision": "fp32", "gpus": True}, ("torch", "fp32", "cuda", engine_plan.BATCH_GPU)),
        ({"engine": "torch", "device": "cpu", "gpus": True},
         ("torch", "fp32", "cpu", engine_plan.BATCH_CPU)),
    ],
)  # fmt: skip
def test_explicit_options_override_defaults(monkeypatch, options, expected):
    monkeypatch.setattr(engine_plan, "openvino_installed", lambda: True)
    assert make_plan(**options) == EnginePlan(*expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda"}, "--device cuda: no GPU was found; use --device cpu"),
        ({"engine": "openvino", "device": "cuda", "gpus": True}, "--engine openvino runs on CPUs"),
    ],
)
def test_incompatible_options_raise_usage_error(installed, options, message):
    with pytest.raises(UsageError, match=message):
        make_plan(**options)


def test_missing_engine_raises_usage_error(monkeypatch):
    monkeypatch.setattr(engine_plan, "openvino_installed", lambda: False)
    with pytest.raises(UsageError, match="--engine openvino: the package is not installed; pip"):
        make_plan(engine="openvino")


def test_planning_imports_no_torch_openvino_or_ray():
    code = (
        "import sys; from retrieval.models.engine_plan import plan_engine;"
        "plan_engine(None, None, None, None, gpus=False);"
        "assert not {'torch', 'openvino', 'ray'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
