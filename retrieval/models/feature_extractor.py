"""Any network with one child that classifies as a feature extractor, without a table of families.

The graph is traced up to what that child reads, and then walked backwards, past pooling, flattening
and dropout, to the last tensor that still has places: a map (n, c, h, w), or tokens (n, t, c) whose
class token is the vector the network itself made.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, fx, nn

from retrieval.core.errors import UsageError
from retrieval.core.schemas import Pooling
from retrieval.models.pooling import POOLINGS, pooled
from retrieval.models.providers.base import State

CLASSIFIERS = ("fc", "classifier", "heads", "head")
PLAIN_SIZE = 224


def classifier_of(model: nn.Module, name: str) -> str:
    """Give the name of the child that classifies."""
    for child in CLASSIFIERS:
        if hasattr(model, child):
            return child
    raise UsageError(f"--backbone {name} has no classifier that could be removed")


class Extractor(nn.Module):
    """A backbone without its classifier: (n, 3, h, w) normalised float32 -> (n, d) float32."""

    def __init__(self, body: nn.Module, pooling: Pooling, *, tokens: bool) -> None:
        super().__init__()
        self.body = body
        self.pooling = pooling
        self.tokens = tokens

    def forward(self, images: Tensor) -> Tensor:
        """Embed a batch."""
        features: Tensor = self.body(images)
        return pooled(self.pooling, lambda pooling: self._vectors(features, pooling))

    def _vectors(self, features: Tensor, pooling: str) -> Tensor:
        if self.tokens:
            if pooling == "avg":  # what the network's own classifier reads
                return features[:, 0]
            features = features[:, 1:].transpose(1, 2)[:, :, None]
        return POOLINGS[pooling](features)


def traced(model: nn.Module, name: str, state: State, pooling: Pooling) -> Extractor:
    """Make the extractor of a model that has no parameters yet, with those of `state`."""
    versioned = OrderedDict(state)  # some networks read old layouts by the version noted beside
    versioned._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]  # noqa: SLF001
    model.load_state_dict(versioned, strict=False, assign=True)
    graph, node, tokens = _up_to_places(model, name)
    for after in reversed(list(graph.nodes)):
        if after.op == "output":
            graph.erase_node(after)
    graph.output(node)
    graph.eliminate_dead_code()
    return Extractor(fx.GraphModule(model, graph).eval(), pooling, tokens=tokens).eval()


def _up_to_places(model: nn.Module, name: str) -> tuple[fx.Graph, fx.Node, bool]:
    """Trace a model to the last node before its classifier whose output still has places.

    Also tells whether these are tokens (class token first) and not a map. The shapes are seen on
    one blank image, since some networks fold their buffers into constants while they are traced.
    """
    child = classifier_of(model, name)
    graph = _Tracer(child).trace(model)
    size = getattr(model, "image_size", PLAIN_SIZE)
    shapes = _Shapes(fx.GraphModule(model, graph), child)
    with torch.no_grad():
        shapes.run(torch.zeros(1, 3, size, size))
    node = next(n for n in graph.nodes if n.op == "call_module" and n.target == child)
    while node.all_input_nodes:
        node = node.all_input_nodes[0]
        shape = shapes.of.get(node.name, torch.Size())
        if len(shape) == 3 or (len(shape) == 4 and shape[2] * shape[3] > 1):
            return graph, node, len(shape) == 3
    raise UsageError(f"--backbone {name} has no features before its classifier")


class _Tracer(fx.Tracer):
    """A tracer that sees the classifier as one step, however it is made."""

    def __init__(self, classifier: str) -> None:
        super().__init__()
        self.classifier = classifier

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name == self.classifier or super().is_leaf_module(
            m, module_qualified_name
        )


class _Shapes(fx.Interpreter):
    """Runs a graph, but not the classifier, and remembers the shape of each tensor in it."""

    def __init__(self, module: fx.GraphModule, classifier: str) -> None:
        super().__init__(module)
        self.classifier = classifier
        self.of: dict[str, torch.Size] = {}

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return args[0] if target == self.classifier else super().call_module(target, args, kwargs)

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.of[n.name] = value.shape
        return value
