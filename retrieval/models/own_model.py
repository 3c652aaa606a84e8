"""Models of the user's own: a torch module with its transform, in memory or from a factory.

Loading such a model runs the user's code. So it is chosen by the user's options or arguments alone:
`registry.add_model` makes it available in a process. A bundle only records which code it needs.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import inspect
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary

from retrieval.core.errors import UsageError

if TYPE_CHECKING:  # `Model` can be imported without torch
    from torch import nn

    from retrieval.core.records import Transform

PYTHON, MEMORY = "python:", "model:"
"""Prefixes of backbone names: of a factory, `python:package.module:factory`, and of a `Model`."""

_NAME = re.compile(r"[\w][\w.+-]*")
_SOURCE_DIGESTS: WeakKeyDictionary[ModuleType, str] = WeakKeyDictionary()
"""Digest of the source of each imported module when it was first used in this process."""
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


@dataclass(frozen=True)
class ModelCode:
    """Identity of the code of an own model, as its bundle records it."""

    name: str
    version: str
    sha256: str  # of the Python source, in hex

    def describe(self) -> str:
        """Return name, version and the first digits of the digest of the source."""
        version = f" {self.version}" if self.version else ""
        return f"{self.name}{version} (source {self.sha256[:12]})"


@dataclass(frozen=True)
class LoadedModel:
    """An own model in this process; the module is shared and must be copied before a change."""

    module: nn.Module
    transform: Transform
    code: ModelCode


class OwnModel(Protocol):
    """An own model that can be sent to workers."""

    @property
    def backbone(self) -> str:
        """Return the name of the backbone, as `--backbone` and bundles write it."""
        ...

    def load(self) -> LoadedModel:
        """Return the module with its transform and the identity of its code."""
        ...


@dataclass(frozen=True, eq=False)
class Model:
    """A torch module in memory that embeds images, with its transform.

    `module` maps (n, 3, h, w) normalised float32 to vectors (n, d) or to a feature map
    (n, c, h, w), which is pooled. `transform` is described as in `transforms.describe_transform`.
    `name` and `version` are recorded in the bundle: change the version whenever the code changes in
    a way that its source does not show. The module travels to workers by pickling; an output holds
    its parameters and the SHA-256 of its source, but never the code.
    """

    module: nn.Module
    transform: Transform | Mapping[str, Any]
    name: str = field(kw_only=True)
    version: str = field(kw_only=True)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UsageError(
                f"Model name={self.name!r}: write a name of letters, digits and . _ + -"
            )
        _check_module(self.module, f"Model {self.name}")

    @property
    def backbone(self) -> str:
        """Return `model:NAME`."""
        return MEMORY + self.name

    def load(self) -> LoadedModel:
        """Return the module in eval mode on the CPU; later changes of the original do not matter.

        Raises UsageError for an invalid transform.
        """
        from retrieval.models.transforms import describe_transform

        module = copy.deepcopy(self.module).cpu().float().eval()
        code = ModelCode(self.name, self.version, _module_digest(module))
        return LoadedModel(module, describe_transform(self.transform, f"Model {self.name}"), code)


@dataclass(frozen=True, eq=False)
class IdentifiedModel:
    """A loaded `Model`, whose code was identified in another process, where its source is."""

    backbone: str
    loaded: LoadedModel

    def load(self) -> LoadedModel:
        """Return the model."""
        return self.loaded


@dataclass(frozen=True)
class FactoryModel:
    """A model that a function of the user's own returns: `python:package.module:factory`.

    The factory takes no arguments. It returns a module and the description of its transform, or a
    `Model`. `python_path` is a folder that is appended to the search path, so that a module in it
    cannot replace an installed one.
    """

    backbone: str
    python_path: str | None = None

    def load(self) -> LoadedModel:
        """Import the module, call the factory and return its model.

        Random numbers that the factory draws from torch are the same each time. Raises UsageError
        if the module cannot be imported or the factory does not return a model.
        """
        module_name, factory_name = _parse_spec(self.backbone)
        if self.python_path is not None and self.python_path not in sys.path:
            sys.path.append(self.python_path)
            importlib.invalidate_caches()
        source_module = self._import(module_name)
        factory = getattr(source_module, factory_name, None)
        if not callable(factory):
            raise UsageError(
                f"--backbone {self.backbone}: {source_module.__file__} has no function "
                f"{factory_name}"
            )
        model = _as_model(self._call(factory), self.backbone, source_module)
        loaded = model.load()
        code = ModelCode(model.name, model.version, _source_digest(source_module, self.backbone))
        return LoadedModel(loaded.module, loaded.transform, code)

    def _import(self, name: str) -> ModuleType:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise UsageError(
                f"--backbone {self.backbone}: there is no module {error.name}; install it, or name "
                "the folder that contains it with --python-path"
            ) from error
        except (Exception, SystemExit) as error:
            raise UsageError(
                f"--backbone {self.backbone}: importing {name} fails ({_describe(error)})"
            ) from error

    def _call(self, factory: Any) -> Any:
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            try:
                return factory()
            except (Exception, SystemExit) as error:
                raise UsageError(
                    f"--backbone {self.backbone}: the factory fails ({_describe(error)})"
                ) from error


def named_model(backbone: str, python_path: str | None) -> FactoryModel | None:
    """Return the model that --backbone and --python-path name; None for other backbones."""
    if not backbone.startswith(PYTHON):
        return None
    _parse_spec(backbone)
    if python_path is not None:
        python_path = os.path.abspath(python_path)
        if not os.path.isdir(python_path):
            raise UsageError(f"--python-path {python_path} is not a folder")
    return FactoryModel(backbone, python_path)


def _parse_spec(backbone: str) -> tuple[str, str]:
    """Return the names of module and factory; raise UsageError for another form."""
    module, colon, factory = backbone.removeprefix(PYTHON).partition(":")
    if not colon or not factory.isidentifier() or not all(map(str.isidentifier, module.split("."))):
        raise UsageError(f"--backbone {backbone}: write {PYTHON}package.module:factory")
    return module, factory


def _as_model(made: Any, backbone: str, source_module: ModuleType) -> Model:
    """Return what a factory returned as a `Model`; raise UsageError for anything else."""
    if isinstance(made, Model):
        return made
    if isinstance(made, tuple) and len(made) == 2:
        module, transform = made
    else:
        module, transform = getattr(made, "module", None), getattr(made, "transform", None)
    _check_module(module, f"--backbone {backbone}: what the factory returned")
    top_level = sys.modules.get(source_module.__name__.partition(".")[0])
    version = getattr(source_module, "__version__", getattr(top_level, "__version__", ""))
    return Model(module, transform, name=backbone.rpartition(":")[2], version=str(version))


def _check_module(module: object, owner: str) -> None:
    """Raise UsageError unless `module` is a torch module."""
    from torch import nn

    if not isinstance(module, nn.Module):
        raise UsageError(
            f"{owner} is no torch module with a transform, but {type(module).__name__}; return "
            "(module, transform) or a Model"
        )


def _source_digest(module: ModuleType, backbone: str) -> str:
    """Return the SHA-256 of the source file of a Python module.

    Raises UsageError if there is none, or it has changed since this process imported the module.
    """
    try:
        digest = hashlib.sha256(inspect.getsource(module).encode()).hexdigest()
    except (OSError, TypeError) as error:
        raise UsageError(
            f"--backbone {backbone}: {module.__name__} has no Python source, by which its bundle "
            "would be recognised; name a module with a .py file"
        ) from error
    if _SOURCE_DIGESTS.setdefault(module, digest) != digest:
        raise UsageError(
            f"--backbone {backbone}: {module.__file__} has changed since this process imported it; "
            "start a new process"
        )
    return digest


def _module_digest(module: nn.Module) -> str:
    """Return the SHA-256 of the structure of a torch module and the source of its classes.

    Classes of torch itself, and classes without source, are represented by their name.
    """
    parts = [_ADDRESS.sub("", repr(module))]
    classes = {type(part) for part in module.modules()}
    for cls in sorted(classes, key=lambda cls: (cls.__module__, cls.__qualname__)):
        parts.append(cls.__qualname__)
        if cls.__module__.partition(".")[0] == "torch":
            continue
        try:
            parts.append(inspect.getsource(cls))
        except (OSError, TypeError):  # defined at a prompt
            continue
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
