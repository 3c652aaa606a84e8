"""Conversion of a classification network into a feature extractor by tracing its graph.

The graph is traced up to the input of the classifier and walked backwards, past pooling, flattening
and dropout, to the last tensor with spatial positions: a map (n, c, h, w), or tokens (n, t, c) with
a class token. No table of model families is needed.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, fx, nn

from retrieval.core.errors import UsageError
from retrieval.core.schemas import Pooling
from retrieval.models.pooling import POOLINGS, apply_pooling
from retrieval.models.providers.base import FeatureExtractor, State
from retrieval.models.transforms import DEFAULT_IMAGE_SIZE

CLASSIFIERS = ("fc", "classifier", "heads", "head")


def find_classifier(model: nn.Module, name: str) -> str:
    """Return the attribute name of the classifier of a model; raise UsageError if it has none."""
    for child in CLASSIFIERS:
        if hasattr(model, child):
            return child
    raise UsageError(f"--backbone {name} has no classifier that can be removed")


class TracedExtractor(FeatureExtractor):
    """A backbone without its classifier: (n, 3, h, w) normalised float32 -> (n, d) float32."""

    def __init__(self, body: nn.Module, pooling: Pooling, *, tokens: bool) -> None:
        super().__init__()
        self.body = body
        self.pooling = pooling
        self.tokens = tokens

    def forward(self, images: Tensor) -> Tensor:
        """Embed a batch with the extractor's pooling."""
        features: Tensor = self.body(images)
        return apply_pooling(self.pooling, lambda pooling: self._pool(features, pooling))

    def feature_map(self, images: Tensor) -> Tensor | None:
        """Return the last feature map of a batch; None if the network ends in tokens."""
        if self.tokens:
            return None
        features: Tensor = self.body(images)
        return features

    def _pool(self, features: Tensor, pooling: str) -> Tensor:
        if self.tokens:
            if pooling == "avg":  # the class token, the input of the classifier
                return features[:, 0]
            features = features[:, 1:].transpose(1, 2)[:, :, None]
        return POOLINGS[pooling](features)


def trace_extractor(model: nn.Module, name: str, state: State, pooling: Pooling) -> TracedExtractor:
    """Build the extractor of a parameterless model and load the parameters of `state`."""
    versioned = OrderedDict(state)  # some networks convert old layouts by this version metadata
    versioned._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]  # noqa: SLF001
    model.load_state_dict(versioned, strict=False, assign=True)
    graph, node, tokens = _trace_to_last_features(model, name)
    for old_node in reversed(list(graph.nodes)):
        if old_node.op == "output":
            graph.erase_node(old_node)
    graph.output(node)
    graph.eliminate_dead_code()
    return TracedExtractor(fx.GraphModule(model, graph).eval(), pooling, tokens=tokens).eval()


def _trace_to_last_features(model: nn.Module, name: str) -> tuple[fx.Graph, fx.Node, bool]:
    """Trace a model to the last node before its classifier whose output has spatial positions.

    Returns the graph, that node, and whether its output is tokens (class token first) and not a
    map. Shapes come from running one blank image, because some networks fold their buffers into
    constants while they are traced.
    """
    child = find_classifier(model, name)
    graph = _Tracer(child).trace(model)
    size = getattr(model, "image_size", DEFAULT_IMAGE_SIZE)
    shapes = _Shapes(fx.GraphModule(model, graph), child)
    with torch.no_grad():
        shapes.run(torch.zeros(1, 3, size, size))
    node = next(n for n in graph.nodes if n.op == "call_module" and n.target == child)
    while node.all_input_nodes:
        node = node.all_input_nodes[0]
        shape = shapes.by_node.get(node.name, torch.Size())
        if len(shape) == 3 or (len(shape) == 4 and shape[2] * shape[3] > 1):
            return graph, node, len(shape) == 3
    raise UsageError(f"--backbone {name} has no features before its classifier")


class _Tracer(fx.Tracer):
    """A tracer that treats the classifier as one step, whatever it contains."""

    def __init__(self, classifier: str) -> None:
        super().__init__()
        self.classifier = classifier

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name == self.classifier or super().is_leaf_module(
            m, module_qualified_name
        )


class _Shapes(fx.Interpreter):
    """Runs a graph without its classifier and records the shape of each tensor."""

    def __init__(self, module: fx.GraphModule, classifier: str) -> None:
        super().__init__(module)
        self.classifier = classifier
        self.by_node: dict[str, torch.Size] = {}

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return args[0] if target == self.classifier else super().call_module(target, args, kwargs)

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.by_node[n.name] = value.shape
        return value
