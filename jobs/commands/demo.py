"""The `demo` command: draw sample images, train a small network on them, and run all stages."""

from __future__ import annotations

import os

from jobs.commands import run
from jobs.config.settings import DemoSettings, RunSettings, TrainSettings
from jobs.evaluation.format_results import format_interval, nan_to_none
from jobs.runtime.check_output import check_output
from jobs.runtime.progress import print_message
from jobs.runtime.result import Result
from jobs.training import train
from retrieval.evaluation.results import Results, summarize
from retrieval.samples import HELD_OUT, write_samples

SHARD_ROWS = 256
"""Rows per shard, few enough that the index of the demo has several shards."""

TOP_K = 50
"""Number of images of a species in the gallery, so that a mAP of 1 is possible."""

EPOCHS = 16
"""Half of the default of `train`: enough for these drawings."""

NEXT_STEP = (
    "next: open the report in a browser; for your own photos: lookalike run --gallery PHOTOS "
    "--queries NEW --output RESULT"
)
"""The last line of the summary."""


def start(settings: DemoSettings) -> Result:
    """Draw the samples, train a bundle, run all stages, and return the summary."""
    root = settings.output
    samples, model, result = (os.path.join(root, name) for name in ("samples", "model", "result"))
    gallery, labels = os.path.join(samples, "gallery"), os.path.join(samples, "labels.csv")
    training = TrainSettings(
        data=gallery, output=model, exclude_classes=",".join(HELD_OUT), epochs=EPOCHS,
        seed=settings.seed,
    )  # fmt: skip
    run_settings = RunSettings(
        gallery=gallery, queries=os.path.join(samples, "queries"), output=result, bundle=model,
        labels=labels, rows_per_shard=SHARD_ROWS, top_k=TOP_K, seed=settings.seed,
        all_measures=settings.all_measures,
    )  # fmt: skip
    check_output(training, "bundle")
    check_output(run_settings, "run")
    print_message(f"drawing 660 animals of 12 species into {samples}")
    write_samples(samples, seed=settings.seed)
    print_message(f"training a small network on 9 of them; held out: {', '.join(HELD_OUT)}")
    train.start(training)
    outcome = run.run(run_settings)
    assert outcome.evaluation is not None  # the samples have labels
    unseen, values = unseen_species(outcome.evaluation.results)
    *lines, report_line = outcome.result.lines
    return Result(
        {**outcome.result.values, **values},
        (*lines, unseen, report_line, NEXT_STEP),
        outcome.result.exit_code,
    )


def unseen_species(results: Results) -> tuple[str, dict[str, float | None]]:
    """Evaluate the queries of the held-out species; return a summary line and JSON values.

    The interval for other species treats species, not queries, as the sample: many queries of three
    species are little evidence about a fourth.
    """
    unseen = results.of_labels(HELD_OUT)
    top, over_species = summarize(unseen)[0], summarize(unseen, over="classes")[0]
    others = f"{len(HELD_OUT)} species are too few for an interval over species"
    if over_species.has_interval:
        others = f"{format_interval(over_species.low, over_species.high)} for other species"
    line = (
        f"the {len(unseen.queries)} queries of {len(HELD_OUT)} species never trained on: "
        f"{top.name} {top.value:.4f}  {format_interval(top.low, top.high)} for more queries of "
        "these, "
        f"{others}; guessing gives {1 / 12:.2f}"
    )
    name = f"{top.name}_unseen"
    return line, {
        name: top.value, f"{name}_low": nan_to_none(over_species.low),
        f"{name}_high": nan_to_none(over_species.high),
    }  # fmt: skip
