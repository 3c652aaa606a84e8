"""Enumeration of the layers of a network, and freezing of all but the last.

A layer has a weight matrix: a convolution, a linear map or an attention; norms and scales after it
belong to it. Layers are counted in the order of the forward pass. timm's models are not traced, so
theirs are counted in the order of their modules, which is the same for most models.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import fx, nn

from retrieval.core.errors import UsageError

_LAST = re.compile(r"last:([1-9]\d{0,4})")


def list_layers(body: nn.Module) -> list[list[nn.Parameter]]:
    """Return the parameters of each layer of an extractor (traced graph or timm model)."""
    inner = body.body
    assert isinstance(inner, nn.Module)
    layers: list[list[nn.Parameter]] = [[]]
    listed_ids: set[int] = set()
    for parameters in (
        _parameters_by_node(inner)
        if isinstance(inner, fx.GraphModule)
        else _parameters_by_module(inner)
    ):
        new_parameters = [parameter for parameter in parameters if id(parameter) not in listed_ids]
        listed_ids |= {id(parameter) for parameter in new_parameters}
        if any(parameter.ndim > 1 for parameter in new_parameters) and any(
            parameter.ndim > 1 for parameter in layers[-1]
        ):
            layers.append([])
        layers[-1] += new_parameters
    return [layer for layer in layers if layer]


def _parameters_by_node(graph: fx.GraphModule) -> Iterator[list[nn.Parameter]]:
    """Yield the parameters that each node of a graph uses."""
    for node in graph.graph.nodes:
        if node.op == "call_module":
            yield list(graph.get_submodule(node.target).parameters())
        elif node.op == "get_attr":
            module_path, _, name = node.target.rpartition(".")
            value = getattr(graph.get_submodule(module_path), name, None)
            if isinstance(value, nn.Parameter):
                yield [value]


def _parameters_by_module(model: nn.Module) -> Iterator[list[nn.Parameter]]:
    """Yield the parameters of each module of a model, without those of its submodules."""
    for part in model.modules():
        yield list(part.parameters(recurse=False))


def unfreeze(body: nn.Module, selection: str) -> int:
    """Make none, all or the last N layers trainable, freeze the others, return their number.

    `selection` is `none`, `all` or `last:N`. Raises UsageError for another text, or where the
    backbone has fewer than N layers.
    """
    layers = list_layers(body)
    count = _parse_layer_count(selection, len(layers))
    for number, layer in enumerate(layers):
        for parameter in layer:
            parameter.requires_grad_(number >= len(layers) - count)
    return count


def _parse_layer_count(selection: str, layers: int) -> int:
    match = _LAST.fullmatch(selection)
    if match is None and selection not in ("none", "all"):
        raise UsageError(f"--unfreeze {selection!r}: write none, all or last:N")
    count = {"none": 0, "all": layers}.get(selection, 0) if match is None else int(match[1])
    if count > layers:
        raise UsageError(f"--unfreeze {selection}: the backbone has {layers} layers")
    return count
