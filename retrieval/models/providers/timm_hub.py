"""Models in timm's form on the Hugging Face hub or in a folder: config.json, model.safetensors.

`hf-hub:OWNER/NAME[@REVISION]` is fetched once, by the driver, both files from one commit; the hub's
cache serves later runs and machines without a network. `local-dir:FOLDER` is such a folder. Other
files, of which some could run code when they are loaded, are never read.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from retrieval.core.errors import InputError, UsageError
from retrieval.models.providers.base import State

HUB, LOCAL = "hf-hub:", "local-dir:"
_CONFIG, _WEIGHTS = "config.json", "model.safetensors"
_REPOSITORY = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_TIMEOUT = 5.0  # seconds to wait for a response of the hub


@dataclass(frozen=True)
class HubModel:
    """The configuration of a model in timm's form."""

    architecture: str
    arguments: Mapping[str, Any]  # of timm.create_model
    configuration: Mapping[str, Any]  # of the weights: input size, mean, number of classes, ...
    folder: Path

    def state(self) -> State:
        """Return the parameters; raise InputError if there are none as safetensors."""
        path = self.folder / _WEIGHTS
        if not path.is_file():
            raise InputError(
                f"{self.folder} has no {_WEIGHTS}, and other files of weights are not loaded from "
                f"it; use --backbone timm:{self.architecture} with --weights FILE, or convert it"
            )
        try:
            state: State = load_file(path)
        except Exception as error:
            raise InputError(f"{path} is not a safetensors file ({error})") from error
        return state


def is_hub_name(name: str) -> bool:
    """Return whether a name of timm (without the prefix `timm:`) is of a hub or a folder."""
    return name.startswith((HUB, LOCAL))


def open_hub_model(name: str, *, with_weights: bool = True) -> HubModel:
    """Return the model of `hf-hub:OWNER/NAME[@REVISION]` or `local-dir:FOLDER`.

    Raises UsageError for another form of name or a model of another library, InputError if the
    files are missing and cannot be fetched.
    """
    if name.startswith(LOCAL):
        folder = Path(name.removeprefix(LOCAL))
    else:
        folder = _fetch(name, [_CONFIG, _WEIGHTS] if with_weights else [_CONFIG])
    return _read_config(folder, name)


def _fetch(name: str, files: list[str]) -> Path:
    """Return the folder of a commit with the files; fetched, or from the hub's cache."""
    match = _REPOSITORY.fullmatch(name.removeprefix(HUB))
    if match is None:
        raise UsageError(f"--backbone timm:{name}: write timm:{HUB}OWNER/NAME, or NAME@REVISION")
    import huggingface_hub

    with check_hub_once() as reachable:
        try:
            folder = huggingface_hub.snapshot_download(
                match["id"], revision=match["revision"], allow_patterns=files,
                local_files_only=not reachable,
            )  # fmt: skip
        except Exception as error:  # the hub's client raises various exceptions
            raise _unavailable(name, match["id"], error if reachable else None) from error
    return Path(folder)


def _unavailable(name: str, repository: str, error: Exception | None) -> InputError:
    if error is not None:
        reason = f"the hub refuses it: {' '.join(str(error).split())[:200]}"
    elif os.environ.get("HF_HUB_OFFLINE"):
        reason = "HF_HUB_OFFLINE is set, and the hub's cache has no copy"
    else:
        reason = "the hub gives no answer, and its cache has no copy"
    return InputError(
        f"--backbone timm:{name} cannot be fetched ({reason}); where there is a network, run "
        f"`hf download {repository} --local-dir FOLDER`, copy the folder, and use "
        f"--backbone timm:{LOCAL}FOLDER"
    )


def _read_config(folder: Path, name: str) -> HubModel:
    path = folder / _CONFIG
    try:
        values = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"--backbone timm:{name}: {folder} has no {_CONFIG}; name a folder in timm's form, "
            f"with {_CONFIG} and {_WEIGHTS}"
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"--backbone timm:{name}: {path} cannot be read ({error})") from error
    architecture = values.get("architecture") if isinstance(values, dict) else None
    if not isinstance(architecture, str):
        raise UsageError(
            f"--backbone timm:{name} is not a model of timm: its {_CONFIG} names no architecture"
        )
    # older files have the configuration of the weights at the top
    configuration = values.get("pretrained_cfg", values)
    arguments = values.get("model_args") or {}
    if not isinstance(configuration, dict) or not isinstance(arguments, dict):
        raise InputError(f"--backbone timm:{name}: {path} is not a configuration of timm")
    classes = values.get("num_classes", configuration.get("num_classes"))
    return HubModel(architecture, arguments, {**configuration, "num_classes": classes}, folder)


@contextmanager
def check_hub_once() -> Iterator[bool]:
    """Yield whether the hub is reachable; while it is not, its client only uses cached files.

    Without this check the client would retry for a minute.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    was_offline = constants.HF_HUB_OFFLINE
    try:
        response = None if was_offline else get_session().head(constants.ENDPOINT, timeout=_TIMEOUT)
        reachable = response is not None and response.status_code < 500
    except Exception:  # noqa: BLE001 - its client raises various exceptions
        reachable = False
    constants.HF_HUB_OFFLINE = not reachable
    try:
        yield reachable
    finally:
        constants.HF_HUB_OFFLINE = was_offline
