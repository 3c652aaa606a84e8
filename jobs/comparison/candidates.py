"""The networks that are compared, and the bundle of each."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

from jobs.config.options import parse_comma_list
from jobs.config.settings import CompareSettings
from retrieval.core.errors import InputError, UsageError
from retrieval.models import registry
from retrieval.models.bundle import ONNX, Bundle, read_bundle
from retrieval.models.pooling import ALL_POOLINGS
from retrieval.models.recipes import RECIPES
from retrieval.models.resolve import RANDOM, check_runnable, resolve_all_poolings
from retrieval.storage.local import Folder, open_folder

ALL = "all"
_SUFFIXES = (".safetensors", ".pth")
_FILE_CHARACTERS = re.compile(r"[^\w.-]")
"""Characters of a name that are replaced in the name of its store and of its results."""


@dataclass(frozen=True)
class Candidate:
    """A network to compare; `bundle` is the path of a trained bundle."""

    name: str  # in the table
    file: str  # name of its store, and of its file of results
    bundle: str | None = None

    @property
    def results_path(self) -> str:
        """Return the path of its measured results below the output."""
        return f"backbones/{self.file}.json"


def list_candidates(settings: CompareSettings) -> list[Candidate]:
    """Return the networks that --backbones and --bundle name.

    Raises UsageError if there are none, and for unknown names.
    """
    bundles = list(dict.fromkeys(parse_comma_list(settings.bundle)))
    if not settings.backbones and not bundles:
        raise UsageError("--backbones names no network to compare; write a,b,c or all")
    names = _backbone_names(settings) if settings.backbones is not None else []
    candidates = [Candidate(name, _FILE_CHARACTERS.sub("-", name)) for name in names]
    return candidates + [
        Candidate(path.encode("utf-8", "backslashreplace").decode(), f"bundle-{number}", path)
        for number, path in enumerate(bundles)
    ]


def build_bundle(settings: CompareSettings, candidate: Candidate) -> tuple[Bundle, dict[str, int]]:
    """Return the bundle that embeds with all poolings at once, and the dimension of each.

    Raises InputError if a folder of --weights has no file for the backbone.
    """
    if candidate.bundle is not None:
        return _read_trained_bundle(candidate.bundle)
    weights = settings.weights
    if weights not in (None, RANDOM):
        weights = _find_weights(open_folder(weights), candidate.name)
        if weights is None:
            raise InputError(
                f"--weights {settings.weights} holds neither "
                f"{_file_stem(candidate.name)}.safetensors nor {_file_stem(candidate.name)}.pth"
            )
    return resolve_all_poolings(
        candidate.name, weights, image_size=settings.image_size, resize=settings.resize,
        seed=settings.seed, python_path=settings.python_path,
        augment_inference=settings.augment_inference, recipe=RECIPES[settings.recipe],
    )  # fmt: skip


def _read_trained_bundle(path: str) -> tuple[Bundle, dict[str, int]]:
    """Read a trained bundle; return it with its pooling and dimension.

    Without a projection its vectors are not normalized, so that all metrics can be measured. The
    pooling is not varied, since the bundle was trained with it.
    """
    bundle = read_bundle(open_folder(path))
    check_runnable(bundle)
    if bundle.pooling == ALL_POOLINGS:
        raise UsageError(f"--bundle {path} is of a comparison; name its backbone in --backbones")
    if bundle.projection is None:
        bundle = dataclasses.replace(bundle, normalize=False)
    return bundle, {bundle.pooling: bundle.dimension}


def _backbone_names(settings: CompareSettings) -> list[str]:
    names = list(dict.fromkeys(parse_comma_list(settings.backbones)))
    if not names:
        raise UsageError("--backbones names no network to compare; write a,b,c or all")
    if names != [ALL]:
        for name in names:
            registry.add_named_model(name, settings.python_path)
            if not name.startswith(ONNX):
                registry.find_provider(name, flag="--backbones")
        return names
    all_names = sorted(registry.list_backbones())
    if settings.weights is None:
        return [name for name in all_names if name != registry.SCRATCH]
    if settings.weights == RANDOM:
        return all_names
    folder = open_folder(settings.weights)
    names = [name for name in all_names if _find_weights(folder, name)]
    if not names:
        raise InputError(
            f"--weights {settings.weights} holds no file of a backbone; specify a folder with "
            "NAME.safetensors or NAME.pth"
        )
    return names


def _file_stem(name: str) -> str:
    return name.rpartition(":")[2]


def _find_weights(folder: Folder, name: str) -> str | None:
    """Return the path of the parameters of a backbone in a folder, or None."""
    files = (_file_stem(name) + suffix for suffix in _SUFFIXES)
    return next((folder.uri(file) for file in files if folder.exists(file)), None)
