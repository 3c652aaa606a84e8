"""Enumeration of the layers of a network, and freezing of all but the last.

A layer is what has a weight matrix: a convolution, a linear map, an attention. Norms and scales
after it belong to it. They are counted in the order in which an image passes them; of timm's
models, which are not traced, in that in which they were made, which is the same but for few.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import fx, nn

from retrieval.core.errors import UsageError

_LAST = re.compile(r"last:([1-9]\d{0,4})")


def list_layers(body: nn.Module) -> list[list[nn.Parameter]]:
    """Return the parameters of each layer of an extractor, whose `body` is a graph or a model."""
    inner = body.body
    assert isinstance(inner, nn.Module)
    layers: list[list[nn.Parameter]] = [[]]
    seen: set[int] = set()
    for parameters in (
        _parameters_by_node(inner)
        if isinstance(inner, fx.GraphModule)
        else _parameters_by_module(inner)
    ):
        own = [one for one in parameters if id(one) not in seen]
        seen |= {id(one) for one in own}
        if any(one.ndim > 1 for one in own) and any(one.ndim > 1 for one in layers[-1]):
            layers.append([])
        layers[-1] += own
    return [layer for layer in layers if layer]


def _parameters_by_node(graph: fx.GraphModule) -> Iterator[list[nn.Parameter]]:
    """Return the parameters that each step of a graph uses."""
    for node in graph.graph.nodes:
        if node.op == "call_module":
            yield list(graph.get_submodule(node.target).parameters())
        elif node.op == "get_attr":
            place, _, name = node.target.rpartition(".")
            value = getattr(graph.get_submodule(place), name, None)
            if isinstance(value, nn.Parameter):
                yield [value]


def _parameters_by_module(model: nn.Module) -> Iterator[list[nn.Parameter]]:
    """Return the parameters that each part of a model has beside those of the parts within it."""
    for part in model.modules():
        yield list(part.parameters(recurse=False))


def unfreeze(body: nn.Module, which: str) -> int:
    """Let `none`, `all` or `last:N` of the layers learn, and give how many do.

    Raises UsageError where there are fewer.
    """
    layers = list_layers(body)
    count = _parse_layer_count(which, len(layers))
    for number, layer in enumerate(layers):
        for parameter in layer:
            parameter.requires_grad_(number >= len(layers) - count)
    return count


def _parse_layer_count(which: str, layers: int) -> int:
    found = _LAST.fullmatch(which)
    if found is None and which not in ("none", "all"):
        raise UsageError(f"--unfreeze {which!r}: write none, all or last:N")
    count = {"none": 0, "all": layers}.get(which, 0) if found is None else int(found[1])
    if count > layers:
        raise UsageError(f"--unfreeze {which}: the backbone has {layers} layers")
    return count
