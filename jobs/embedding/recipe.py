"""Recipes of the command line: the defaults of the model options, decided once per output.

A projection is decided when a store is begun: it is part of the store's job.json, so that neither a
resumed run nor a grown gallery decides again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from jobs.config.settings import ModelOptions
from retrieval.core.errors import Mismatch
from retrieval.models.recipes import PLAIN, RECIPES, Recipe, min_projection_images
from retrieval.storage import finished_output
from retrieval.storage.finished_output import read_if_exists
from retrieval.storage.local import Folder, open_folder

if TYPE_CHECKING:  # torch comes with it
    from retrieval.models.bundle import Bundle

_COMPARED = ("backbone", "pooling", "transform", "normalize", "augment_inference")
"""Fields of bundle.json that a message about another bundle names."""


@dataclass(frozen=True)
class ProjectionChoice:
    """The dimensions after the projection of a store, 0 for none.

    `left_out` says why a recipe's projection is left out, and is empty otherwise.
    """

    dimensions: int
    left_out: str = ""

    def job_fields(self, seed: int) -> dict[str, Any]:
        """Return the fields of job.json: those of the projection, or why there is none."""
        if self.dimensions:
            return {"pca": self.dimensions, "pca_seed": seed}
        return {"pca_left_out": self.left_out} if self.left_out else {}


NO_PROJECTION = ProjectionChoice(0)


def applied_recipe(settings: ModelOptions) -> Recipe:
    """Return the recipe that applies to the model options.

    A bundle has its own resize and pooling. Of the recipe only the projection applies to an output
    of `train`, and nothing to another bundle, whose vectors stay comparable to those of its store.
    """
    recipe = RECIPES[settings.recipe]
    if settings.bundle is None:
        return recipe
    return replace(PLAIN, pca=recipe.pca) if _is_trained(settings.bundle) else PLAIN


def _is_trained(bundle: str) -> bool:
    """Return whether a bundle is an output of `train`."""
    folder = open_folder(bundle)
    data = read_if_exists(folder, finished_output.JOB)
    return data is not None and finished_output.read_job(folder, data)["kind"] == "bundle"


def recipe_job_fields(settings: ModelOptions) -> dict[str, Any]:
    """Return the options that a recipe sets, with their values, for the job.json of `run`.

    What became of them is in the bundle, and in the job.json of the gallery's store.
    """
    recipe = applied_recipe(settings)
    dimensions = recipe.pca if settings.pca is None else settings.pca
    return {
        "pooling": settings.pooling or recipe.pooling,
        "resize": settings.resize or recipe.resize,
        "pca": dimensions or None,
    }


def choose_projection(
    settings: ModelOptions, bundle: Bundle, images: int, begun: Mapping[str, Any] | None
) -> ProjectionChoice:
    """Decide on the projection of a store.

    Args:
        settings: The model options.
        bundle: The model, without the projection to decide on.
        images: Number of images to embed.
        begun: The settings of the store if it exists.
    """
    if settings.pca is not None:
        return ProjectionChoice(settings.pca)
    wanted = applied_recipe(settings).pca
    if not wanted or wanted >= bundle.dimension or bundle.projection is not None:
        return NO_PROJECTION
    if begun is not None and begun.get("pca") in (None, wanted):
        return ProjectionChoice(begun.get("pca") or 0, begun.get("pca_left_out", ""))
    if images < (needed := min_projection_images(wanted)):
        return ProjectionChoice(0, f"fewer than {needed} images to fit {wanted} dimensions on")
    return ProjectionChoice(wanted)


def projection_left_out(store: Folder) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return values and lines of a result that say why a store has no projection, if a recipe's."""
    reason = finished_output.read_settings(store).get("pca_left_out")
    if reason is None:
        return {}, ()
    return {"pca_left_out": reason}, (f"no projection (--pca): {reason}",)


@contextmanager
def explain_other_bundle(
    settings: ModelOptions, model: Folder, bundle: Bundle | None
) -> Iterator[None]:
    """Add to a Mismatch how the bundle in a folder differs, and which recipe it may be of."""
    try:
        yield
    except Mismatch as error:
        stored = _read_bundle_json(model)
        if bundle is None or stored is None:
            raise
        differences = list(_differences(stored, json.loads(bundle.json)))
        text = f"{error} (of the model, {'; '.join(differences)})" if differences else str(error)
        is_plain = bool(differences) and stored["pooling"] == "avg"
        if settings.recipe != "plain" and (is_plain or "pca was None" in text):
            text += (
                "; --recipe plain continues an output made with the weights' own resize, average "
                "pooling and no projection, the defaults of earlier versions"
            )
        raise Mismatch(text) from None


def _read_bundle_json(model: Folder) -> dict[str, Any] | None:
    data = read_if_exists(model, "bundle.json")
    try:
        values: dict[str, Any] | None = json.loads(data) if data else None
    except ValueError:  # an altered file is reported when it is used
        return None
    return values


def _differences(stored: Mapping[str, Any], current: Mapping[str, Any]) -> Iterator[str]:
    for name in _COMPARED:
        old, new = stored.get(name), current.get(name)
        if name == "transform" and old and new:
            changed = [key for key in new if old.get(key) != new[key]]
            yield from (f"{key} was {old.get(key)}, is {new[key]}" for key in changed)
        elif old != new:
            yield f"{name} was {old}, is {new}"
