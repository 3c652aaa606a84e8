"""Tests of models in memory, which travel to the child process of a command."""

import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

from lookalike import Model, UsageError
from lookalike.model_transfer import extract_model, pickle_model
from tests.retrieval.models.test_own_model import DESCRIPTION, Net

_CHILD = """
import sys
import torch
from lookalike.model_transfer import add_pickled_model
from retrieval.models.registry import build_network, own_code

add_pickled_model(sys.stdin.buffer.read())
assert not {"tests", "tests.retrieval"} & set(sys.modules)
network = build_network("model:net").eval()
print(own_code("model:net").sha256, network(torch.ones(1, 3, 8, 8)).tolist())
"""


def test_model_is_taken_from_the_arguments():
    model = Model(Net(), DESCRIPTION, name="net", version="1")
    assert extract_model({"backbone": model, "top_k": 3}) == (
        {"backbone": "model:net", "top_k": 3}, model
    )  # fmt: skip
    for arguments in ({"backbone": "resnet50"}, {"backbone": None}, {"top_k": 3}):
        assert extract_model(arguments) == (arguments, None)
    assert pickle_model(None) == b""


def test_module_without_a_transform_is_refused():
    with pytest.raises(UsageError, match=r"Net is no name; pass .* lookalike\.Model\(module, tran"):
        extract_model({"backbone": Net()})


def test_model_runs_in_a_process_that_cannot_import_its_class(tmp_path):
    torch.manual_seed(0)
    model = Model(Net(), DESCRIPTION, name="net", version="1")
    child = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(_CHILD)], cwd=tmp_path, check=True,
        input=pickle_model(model), capture_output=True,
    )  # fmt: skip
    loaded = model.load()
    output = loaded.module(torch.ones(1, 3, 8, 8)).tolist()
    assert child.stdout.decode().strip() == f"{loaded.code.sha256} {output}"


def test_module_that_cannot_be_pickled_is_refused(tmp_path):
    module = nn.Identity()
    with open(tmp_path / "log", "w") as module.log:
        model = Model(module, DESCRIPTION, name="logging", version="1")
        with pytest.raises(UsageError, match="the Model logging cannot be sent"):
            pickle_model(model)
