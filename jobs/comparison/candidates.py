"""The networks to compare, and the bundle of each."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from jobs.config.options import parse_comma_list
from jobs.config.settings import CompareSettings
from retrieval.core.errors import InputError, UsageError
from retrieval.models import registry
from retrieval.models.bundle import Bundle, read_bundle
from retrieval.models.pooling import ALL_POOLINGS
from retrieval.models.resolve import RANDOM, resolve_all_poolings
from retrieval.storage.local import Folder, open_folder

ALL = "all"
_ENDINGS = (".safetensors", ".pth")


@dataclass(frozen=True)
class Candidate:
    """A network to compare: its name in the table and the file name of its store."""

    name: str
    file: str
    bundle: str | None = None  # its path

    @property
    def figures(self) -> str:
        """Return the file of its figures, below the output."""
        return f"backbones/{self.file}.json"


def list_candidates(settings: CompareSettings) -> list[Candidate]:
    """Name the networks that --backbones and --bundle ask for; unknown names are refused."""
    bundles = list(dict.fromkeys(parse_comma_list(settings.bundle)))
    if not settings.backbones and not bundles:
        raise UsageError("--backbones names no network to compare; write a,b,c or all")
    names = _backbone_names(settings) if settings.backbones is not None else []
    found = [Candidate(name, name.replace(":", "-")) for name in names]
    return found + [
        Candidate(path.encode("utf-8", "backslashreplace").decode(), f"bundle-{number}", path)
        for number, path in enumerate(bundles)
    ]


def build_bundle(settings: CompareSettings, candidate: Candidate) -> tuple[Bundle, dict[str, int]]:
    """Make the bundle that embeds for all poolings at once, and the width of each."""
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
        seed=settings.seed,
    )  # fmt: skip


def _read_trained_bundle(path: str) -> tuple[Bundle, dict[str, int]]:
    """Read a bundle; without a projection it gives raw vectors, which all metrics are measured on.

    Its own pooling stays: it was trained with it.
    """
    bundle = read_bundle(open_folder(path))
    registry.find_provider(bundle.backbone)
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
            registry.find_provider(name, flag="--backbones")
        return names
    everything = sorted(registry.list_backbones())
    if settings.weights is None:
        return [name for name in everything if name != registry.SCRATCH]
    if settings.weights == RANDOM:
        return everything
    folder = open_folder(settings.weights)
    names = [name for name in everything if _find_weights(folder, name)]
    if not names:
        raise InputError(
            f"--weights {settings.weights} holds no file of a backbone; name a folder with "
            "NAME.safetensors or NAME.pth"
        )
    return names


def _file_stem(name: str) -> str:
    return name.rpartition(":")[2]


def _find_weights(folder: Folder, name: str) -> str | None:
    """Return where a folder holds the parameters of a backbone, if it does."""
    files = (_file_stem(name) + ending for ending in _ENDINGS)
    return next((folder.uri(file) for file in files if folder.exists(file)), None)
