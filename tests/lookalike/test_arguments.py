"""Test the arguments of the commands: names, types, defaults and refusals."""

import dataclasses
import inspect

import numpy as np
import pytest

import lookalike
from jobs.config.verbs import VERBS
from lookalike.arguments import make_settings
from tests.lookalike.signatures import LEFT_OUT


@pytest.mark.parametrize("verb", VERBS)
def test_function_has_the_options_and_defaults_of_its_verb(verb):
    function = getattr(lookalike, verb)
    parameters = inspect.signature(function).parameters
    fields = {field.name: field for field in dataclasses.fields(VERBS[verb].settings)}
    assert parameters.keys() == fields.keys() - LEFT_OUT
    defaults = {name: p.default for name, p in parameters.items() if p.default is not p.empty}
    required = dict.fromkeys(parameters.keys() - defaults.keys(), "some/path")
    assert make_settings(verb, {**required, **defaults}) == VERBS[verb].settings(**required)
    assert VERBS[verb].help in function.__doc__
    assert all(f"    {name}: " in function.__doc__ for name in parameters)
    assert "--" not in function.__doc__


def test_values_are_converted_as_on_the_command_line(tmp_path):
    paths = {"index": tmp_path, "queries": "q", "output": b"o"}
    settings = make_settings("rank", {**paths, "recall": "exact", "top_k": np.int64(7)})
    assert (settings.index, settings.output) == (str(tmp_path), "o")
    assert (settings.recall, settings.top_k) == (1.0, 7)
    settings = make_settings("index", {"embeddings": "e", "output": "o", "max_index_memory": "16G"})
    assert settings.max_index_memory == 16 << 30
    with pytest.raises(TypeError, match="unexpected keyword argument 'topk'"):
        lookalike.rank(**paths, topk=3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"top_k": 0}, "--top-k 0: write at least 1"),
        ({"top_k": "10"}, "--top-k '10': pass an integer"),
        ({"top_k": True}, "--top-k True: pass an integer"),
        ({"recall": 1.5}, "--recall: '1.5' is not a recall; write 0.95 or exact"),
        ({"exclude_self": 1}, "--exclude-self 1: pass True or False"),
        ({"min_score": "high"}, "--min-score 'high': pass a number"),
        ({"filter": 3}, "--filter 3: pass a string"),
        ({"device": "tpu"}, "--device 'tpu': write one of cpu, cuda"),
        ({"index": None}, "--index: NoneType is no path; pass a path or a URI"),
        ({"queries": 7}, "--queries: the array is int64 of shape (); pass numbers of shape (n, d)"),
        ({"labels": [1]}, "--labels: this list is no input; pass a path, or a table with"),
    ],
)
def test_wrong_values_are_refused_before_a_process_starts(tmp_path, arguments, message):
    with pytest.raises(lookalike.UsageError) as error:
        lookalike.rank(**{"index": "i", "queries": "q", "output": tmp_path / "o", **arguments})
    assert str(error.value).startswith(message)
    assert error.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []
