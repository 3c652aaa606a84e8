"""lookalike demo: the whole job on drawn creatures, with a network trained here and now."""

from __future__ import annotations

import os

from jobs.commands import run
from jobs.config.settings import DemoSettings, RunSettings, TrainSettings
from jobs.evaluation.format_results import interval, known
from jobs.runtime.check_output import check_output
from jobs.runtime.progress import say
from jobs.runtime.result import Result
from jobs.training import train
from retrieval.evaluation.results import Results, measured
from retrieval.samples import HELD_OUT, write_samples

SHARD_ROWS = 256
"""So that the demo's index has several shards, as a large one would."""

TOP_K = 50
"""As many as a species has images in the gallery: a mean average precision of 1 is within reach."""


def start(settings: DemoSettings) -> Result:
    """Draw, train, run, and say where to look."""
    root = settings.output
    samples, model, out = (os.path.join(root, name) for name in ("samples", "model", "result"))
    gallery, labels = os.path.join(samples, "gallery"), os.path.join(samples, "labels.csv")
    training = TrainSettings(
        data=gallery, output=model, leave_out=",".join(HELD_OUT), seed=settings.seed
    )
    running = RunSettings(
        gallery=gallery, queries=os.path.join(samples, "queries"), output=out, bundle=model,
        labels=labels, rows_per_shard=SHARD_ROWS, top_k=TOP_K, seed=settings.seed,
        all_measures=settings.all_measures,
    )  # fmt: skip
    check_output(training, "bundle")
    check_output(running, "run")
    say(f"drawing 660 creatures of 12 species into {samples}")
    write_samples(samples, seed=settings.seed)
    say(f"training a small network on 9 of them; {', '.join(HELD_OUT)} it will never have seen")
    train.start(training)
    ran = run.run(running)
    assert ran.evaluation is not None  # the samples have labels
    unseen, values = unseen_species(ran.evaluation.results)
    *before, last = ran.result.lines
    return Result({**ran.result.values, **values}, (*before, unseen, last), ran.result.exit_code)


def unseen_species(results: Results) -> tuple[str, dict[str, float | None]]:
    """Report how the queries of the species that were held out fare, as a line and as values.

    What is to be said of any unseen species is sampled by species: the queries of three tell much
    of these three, and next to nothing of a fourth.
    """
    unseen = results.of_labels(HELD_OUT)
    top, over_species = measured(unseen)[0], measured(unseen, over="classes")[0]
    others = f"{len(HELD_OUT)} species are too few for an interval over species"
    if over_species.has_interval:
        others = f"{interval(over_species.low, over_species.high)} for other species"
    line = (
        f"the {len(unseen.queries)} queries of {len(HELD_OUT)} species never trained on: "
        f"{top.name} {top.value:.4f}  {interval(top.low, top.high)} for more queries of these, "
        f"{others}; guessing gives {1 / 12:.2f}"
    )
    name = f"{top.name}_unseen"
    return line, {
        name: top.value, f"{name}_low": known(over_species.low),
        f"{name}_high": known(over_species.high),
    }  # fmt: skip
