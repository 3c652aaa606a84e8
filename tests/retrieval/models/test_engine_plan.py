"""Which engine runs a network is decided by what was asked and what is there alone."""

import subprocess
import sys

import pytest

from retrieval.core.errors import UsageError
from retrieval.models import engine_plan
from retrieval.models.engine_plan import EnginePlan, plan_engine


@pytest.fixture(params=[True, False], ids=["with openvino", "without openvino"])
def installed(request, monkeypatch):
    monkeypatch.setattr(engine_plan, "openvino_installed", lambda: request.param)
    return request.param


def planned(*, gpus=False, **asked):
    wanted = {"engine": None, "precision": None, "device": None, "batch_size": None, **asked}
    return plan_engine(**wanted, gpus=gpus)


def test_on_cpus_it_is_openvino_where_it_is_installed(installed):
    engine = "openvino" if installed else "torch"
    assert planned() == EnginePlan(engine, "fp32", "cpu", engine_plan.BATCH_CPU)


def test_a_gpu_is_used_where_there_is_one(installed):
    assert planned(gpus=True) == EnginePlan("torch", "bf16", "cuda", engine_plan.BATCH_GPU)


@pytest.mark.parametrize(
    ("asked", "answer"),
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
def test_what_is_asked_for_is_taken(monkeypatch, asked, answer):
    monkeypatch.setattr(engine_plan, "openvino_installed", lambda: True)
    assert planned(**asked) == EnginePlan(*answer)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"device": "cuda"}, "--device cuda: no GPU was found; use --device cpu"),
        ({"engine": "openvino", "device": "cuda", "gpus": True}, "--engine openvino runs on CPUs"),
    ],
)
def test_what_does_not_go_together_is_refused(installed, asked, said):
    with pytest.raises(UsageError, match=said):
        planned(**asked)


def test_an_engine_that_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setattr(engine_plan, "openvino_installed", lambda: False)
    with pytest.raises(UsageError, match="--engine openvino: the package is not installed; pip"):
        planned(engine="openvino")


def test_planning_imports_neither_torch_nor_an_engine():
    code = (
        "import sys; from retrieval.models.engine_plan import plan_engine;"
        "plan_engine(None, None, None, None, gpus=False);"
        "assert not {'torch', 'openvino', 'ray'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
