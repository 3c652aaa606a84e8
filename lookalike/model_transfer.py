"""Transfer of a model in memory to the child process of a command, through its stdin.

The bytes are pickled, and so may contain code; they go from the calling process to its own child
alone, and are in no file. Classes that the child could not import, such as those of a notebook or
of a script, travel with the model.
"""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any

from retrieval.core.errors import UsageError
from retrieval.models.own_model import IdentifiedModel, Model


def extract_model(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], Model | None]:
    """Return arguments with the name of a `Model` in its place, and the model; None without one.

    Raises UsageError for a backbone that is neither a name nor a `Model`.
    """
    backbone = arguments.get("backbone")
    if isinstance(backbone, Model):
        return {**arguments, "backbone": backbone.backbone}, backbone
    if not isinstance(backbone, str | None):
        raise UsageError(
            f"backbone: {type(backbone).__name__} is no name; pass a torch module as "
            'lookalike.Model(module, transform, name="...", version="...")'
        )
    return dict(arguments), None


def pickle_model(model: Model | None) -> bytes:
    """Return a model as bytes, identified by its source in this process; empty without one.

    Raises UsageError for an invalid transform, or a module that cannot be pickled.
    """
    if model is None:
        return b""
    import cloudpickle

    try:
        loaded = model.load()
        classes = {type(part) for part in loaded.module.modules()}
        with _by_value({cls.__module__ for cls in classes}):
            data: bytes = cloudpickle.dumps(IdentifiedModel(model.backbone, loaded))
    except UsageError:
        raise
    except Exception as error:  # modules may hold anything
        raise UsageError(
            f"the Model {model.name} cannot be sent to another process ({error}); omit what cannot "
            "be pickled, or name a factory with backbone='python:MODULE:FACTORY'"
        ) from error
    return data


def add_pickled_model(data: bytes) -> None:
    """Make a model that `pickle_model` returned available in this process."""
    import cloudpickle

    from retrieval.models.registry import add_model

    add_model(cloudpickle.loads(data))


@contextmanager
def _by_value(names: set[str]) -> Iterator[None]:
    """Pickle the modules of these names with their code, unless they are installed."""
    import cloudpickle

    with ExitStack() as stack:
        for name in sorted(names):
            module = sys.modules.get(name)
            if module is not None and name != "__main__" and not _is_installed(module):
                cloudpickle.register_pickle_by_value(module)
                stack.callback(cloudpickle.unregister_pickle_by_value, module)
        yield


def _is_installed(module: ModuleType) -> bool:
    """Return whether a module belongs to Python, or to a package that is installed."""
    file = getattr(module, "__file__", None)
    paths = sysconfig.get_paths()
    folders = tuple(paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))
    return file is None or file.startswith(folders)
