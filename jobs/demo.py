"""lookalike demo: the whole job on drawn creatures, with a network trained here and now."""

from __future__ import annotations

import os

from jobs import run, train
from jobs.check_output import check_output
from jobs.progress import say
from jobs.result import Result
from jobs.settings import DemoSettings, RunSettings, TrainSettings
from retrieval.evaluation.results import measured
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
    )  # fmt: skip
    check_output(training, "bundle")
    check_output(running, "run")
    say(f"drawing 660 creatures of 12 species into {samples}")
    write_samples(samples, seed=settings.seed)
    say(f"training a small network on 9 of them; {', '.join(HELD_OUT)} it will never have seen")
    train.start(training)
    ran = run.run(running)
    assert ran.evaluation is not None  # the samples have labels
    unseen = ran.evaluation.results.of_labels(HELD_OUT)
    top = measured(unseen, seed=settings.seed)[0]
    line = (
        f"the {len(unseen.queries)} queries of species never trained on: top1 {top.value:.4f}  "
        f"[{top.low:.4f}, {top.high:.4f}]; guessing gives {1 / 12:.2f}"
    )
    values = {**ran.result.values, "top1_unseen": top.value}
    *before, last = ran.result.lines
    return Result(values, (*before, line, last), ran.result.exit_code)
