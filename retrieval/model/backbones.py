"""Any torchvision classification model as a feature extractor, its classifier removed generically.

Every such model has one child named fc, classifier, head or heads. The graph is traced up to what
that child reads, and then walked backwards, past pooling, flattening and dropout, to the last
tensor that still has places: a map (n, c, h, w), or tokens (n, t, c) whose class token is the
vector the network itself made. So no table of families is needed, and a new model of torchvision
works on the day it appears.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from math import isqrt
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor, fx, nn
from torchvision import models

from retrieval.errors import InputError, UsageError
from retrieval.model.pooling import POOLINGS
from retrieval.model.scratch import IMAGE_SIZE, ScratchCNN
from retrieval.tables import Pooling, Resize, Transform

SCRATCH = "scratch"
CLASSIFIERS = ("fc", "classifier", "heads", "head")
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_PLAIN_SIZE = 224
_POSITIONS = "encoder.pos_embedding"
"""Of a vision transformer: it reads images of one size, and its parameters tell which."""

State = dict[str, Tensor]


@dataclass(frozen=True)
class Source:
    """Where the parameters of a backbone come from, and the transform they were made for."""

    state: State
    transform: Transform


def names() -> list[str]:
    """List the classification models of torchvision, and `scratch`."""
    return [*sorted(models.list_models(module=models)), SCRATCH]


def check_name(name: str) -> None:
    """Refuse a backbone that does not exist, naming near ones."""
    known = names()
    if name not in known:
        from difflib import get_close_matches

        near = ", ".join(get_close_matches(name, known, 3, 0.4)) or "resnet50, mobilenet_v2"
        raise UsageError(f"--backbone {name} is not known; did you mean {near}?")


def network(name: str, *, num_classes: int = 1000, state: State | None = None) -> nn.Module:
    """Make a network of random parameters, with its classifier, of the size that `state` is for."""
    check_name(name)
    if name == SCRATCH:
        return ScratchCNN(num_classes)
    extra = _extra(name, state or {})
    made: nn.Module = models.get_model(name, weights=None, **extra, num_classes=num_classes)
    return made


def _skeleton(name: str, state: State) -> nn.Module:
    """Make a network without memory for parameters, where that can be done."""
    try:
        with torch.device("meta"):
            return network(name, state=state)
    except NotImplementedError:  # RegNet computes its widths with tensors
        return network(name, state=state).to("meta")


def _extra(name: str, state: State) -> dict[str, Any]:
    """Give what some networks need so that torchvision's weights mean what they should."""
    if name in ("googlenet", "inception_v3"):
        return {"transform_input": True, "init_weights": False, "aux_logits": True}
    positions = state.get(_POSITIONS, torch.empty(0)).shape
    if name.startswith("vit_") and len(positions) == 3:  # one a patch, and one of the class token
        side = isqrt(max(positions[1] - 1, 1))
        return {"image_size": side * int(name.rsplit("_", 1)[1])}
    return {}


def pretrained(name: str, *, image_size: int | None, resize: Resize) -> Source:
    """Fetch torchvision's default weights and their own transform; needs the network once."""
    check_name(name)
    if name == SCRATCH:
        raise UsageError("--backbone scratch has no weights of its own; train it, name --bundle")
    weights = models.get_model_weights(name).DEFAULT
    try:
        state = weights.get_state_dict(progress=False, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        raise InputError(
            f"the weights of --backbone {name} could not be fetched ({error}); "
            "name a file with --weights, or a trained bundle with --bundle"
        ) from error
    preset = weights.transforms()
    size, shorter = int(preset.crop_size[0]), int(preset.resize_size[0])
    if image_size is not None:
        size, shorter = image_size, round(image_size * shorter / size)
    bicubic = "bicubic" in str(preset.interpolation).lower()
    mean, std = tuple(preset.mean), tuple(preset.std)
    transform = Transform(resize, shorter, size, "bicubic" if bicubic else "bilinear", mean, std)
    return Source(state, transform)


def first_preset(name: str, *, image_size: int | None, resize: Resize) -> Transform:
    """Give torchvision's first preset, for weights that come without a transform."""
    size = image_size or (IMAGE_SIZE if name == SCRATCH else _PLAIN_SIZE)
    shorter = size if name == SCRATCH else round(size * 256 / 224)
    return Transform(resize, shorter, size, "bilinear", *_IMAGENET)


def classifier_of(model: nn.Module, name: str) -> str:
    """Give the name of the child that classifies."""
    for child in CLASSIFIERS:
        if hasattr(model, child):
            return child
    raise UsageError(f"--backbone {name} has no classifier that could be removed")


def fit_state(state: State, name: str) -> State:
    """Bring a state dict to the parameters of a backbone without its classifier.

    A `module.` prefix, a missing or another classifier and missing batch counters are understood;
    anything else is refused, naming the keys.
    """
    given = {key.removeprefix("module."): value for key, value in state.items()}
    model = _skeleton(name, given)
    prefix = classifier_of(model, name) + "."
    wanted = {key: value for key, value in model.state_dict().items() if not _aside(key, prefix)}
    given = {key: value for key, value in given.items() if not _aside(key, prefix)}
    missing = sorted(k for k in wanted if k not in given and not k.endswith("num_batches_tracked"))
    extra = sorted(key for key in given if key not in wanted)
    shaped = sorted(k for k in given if k in wanted and given[k].shape != wanted[k].shape)
    problems = [
        f"{what} {', '.join(keys[:3])}{f' and {len(keys) - 3} more' if len(keys) > 3 else ''}"
        for what, keys in (("missing", missing), ("unknown", extra), ("of another shape", shaped))
        if keys
    ]
    if problems:
        raise UsageError(f"--weights do not fit --backbone {name}: {'; '.join(problems)}")
    return {
        key: given[key].to(wanted[key].dtype).contiguous() if key in given else torch.tensor(0)
        for key in sorted(wanted)
    }


def _aside(key: str, classifier: str) -> bool:
    """Tell the parameters that only classify, during training or after."""
    return key.startswith((classifier, "AuxLogits.", "aux1.", "aux2."))


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
        if self.tokens:
            if self.pooling == "avg":  # what the network's own classifier reads
                return features[:, 0]
            features = features[:, 1:].transpose(1, 2)[:, :, None]
        return POOLINGS[self.pooling](features)


def extractor(name: str, state: State, pooling: Pooling) -> Extractor:
    """Make the feature extractor of a backbone with the parameters that `fit_state` gave."""
    model = _skeleton(name, state).eval()
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
    size = getattr(model, "image_size", _PLAIN_SIZE)
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
