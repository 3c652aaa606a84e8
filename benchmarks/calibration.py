"""Measure how far calibrated probabilities agree with labels, and how well they reject unknowns.

python -m benchmarks.calibration --data DIR [--top-k 10] [--folder bench-output/calibration]

DIR holds `images/gallery`, `images/queries`, `images/labels.csv` and `weights`. For each network, a
calibration is learned from the gallery, each photo ranked against all others, and judged on
held-out folds by query, on held-out folds by class, and on the separate queries. For the open set,
the photos of every third class are filtered out of the gallery, so that their queries have no right
match. Outputs in the folder are reused.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

import lookalike
from benchmarks.output import write_result
from benchmarks.recipe_vectors import BACKBONES, weights_file


def main() -> None:
    """Run the benchmark and print its result as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--top-k", type=int, default=10)
    parser.add_argument("--folder", type=Path, default=Path("bench-output/calibration"))
    arguments = parser.parse_args()
    networks = {
        backbone.removeprefix("timm:"): _measure(arguments, backbone) for backbone in BACKBONES
    }
    write_result("calibration", top_k=arguments.top_k, networks=networks)


def _measure(arguments: argparse.Namespace, backbone: str) -> dict[str, Any]:
    """Return the figures of a network: closed set, and open set."""
    images, folder = arguments.data / "images", arguments.folder / backbone.removeprefix("timm:")
    folder.mkdir(parents=True, exist_ok=True)
    labels, store = str(images / "labels.csv"), str(folder / "gallery")
    lookalike.embed(
        input=str(images / "gallery"), output=store, labels=labels, backbone=backbone,
        weights=str(weights_file(arguments.data, backbone)), resize="squash", pooling="gem",
        pca=256,
    )  # fmt: skip
    lookalike.embed(
        input=str(images / "queries"), output=str(folder / "queries"), labels=labels, bundle=store
    )
    lookalike.index(embeddings=store, output=str(folder / "index"))
    with (images / "labels.csv").open(newline="") as file:
        classes = sorted({row["label"] for row in csv.DictReader(file)})
    unknown = ", ".join(f"'{label}'" for label in classes[::3])
    figures = _calibrate(arguments, folder, "closed", None)
    return {**figures, "open": _calibrate(
        arguments, folder, "open", f"label not in ({unknown})"
    )}  # fmt: skip


def _calibrate(
    arguments: argparse.Namespace, stores: Path, name: str, row_filter: str | None
) -> dict[str, Any]:
    """Learn a calibration from the gallery and judge it on the queries."""
    folder = stores / name
    folder.mkdir(exist_ok=True)
    options: dict[str, Any] = {
        "index": str(stores / "index"), "top_k": arguments.top_k, "recall": 1.0,
        "filter": row_filter,
    }  # fmt: skip
    gallery = lookalike.rank(
        queries=str(stores / "gallery"), output=str(folder / "others"), exclude_self=True, **options
    )
    file = str(folder / "calibration.json")
    by_query = lookalike.evaluate(matches=gallery.output, calibrate=file)
    by_class = lookalike.evaluate(
        matches=gallery.output, calibrate=str(folder / "by-class.json"), intervals_over="classes"
    )
    queries: dict[str, Any] = {"queries": str(stores / "queries"), **options}
    plain = lookalike.rank(output=str(folder / "plain"), **queries)
    calibrated = lookalike.rank(output=str(folder / "calibrated"), calibration=file, **queries)
    figures = lookalike.evaluate(matches=calibrated.output)
    results = {
        "lead_weight": by_query["lead_weight"],
        "by_query": _reliability(by_query["held_out"]),
        "by_class": _reliability(by_class["held_out"]),
        "queries": _reliability(figures["reliability"]),
    }
    if row_filter is not None:
        scores = lookalike.evaluate(matches=plain.output)
        for title, values in (("probability", figures), ("score", scores)):
            results[title] = {key: values[key] for key in ("AUROC", "DIR@0.1", "DIR@0.01")}
    return results


def _reliability(values: dict[str, Any]) -> dict[str, float]:
    """Return the figures of a reliability that are recorded."""
    names = (
        "calibration_error", "chance_error", "first_calibration_error", "first_chance_error",
        "brier", "constant_brier",
    )  # fmt: skip
    return {name: round(values[name], 4) for name in names}


if __name__ == "__main__":
    main()
