"""The verbs of the command line: their settings, modules, usual options and examples."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.config import settings


@dataclass(frozen=True)
class Verb:
    """One command: its settings class, the module with its `start` function, and its help."""

    settings: type
    module: str
    help: str
    examples: tuple[str, ...]
    usual: tuple[str, ...]  # the options that --help shows: at most ten, all required ones first


VERBS: dict[str, Verb] = {
    "run": Verb(
        settings.RunSettings, "jobs.commands.run",
        "Embed, index, rank, evaluate and report in one command.",
        ("lookalike run --gallery photos/ --queries new/ --output result",
         "lookalike run --gallery photos/ --queries new/ --output result --rerank k-reciprocal",
         "lookalike run --gallery s3://bucket/photos --queries new.csv --output s3://bucket/result"),
        ("gallery", "queries", "output", "backbone", "weights", "labels", "top_k", "rerank",
         "filter", "workers"),
    ),
    "embed": Verb(
        settings.EmbedSettings, "jobs.embedding.embed", "Embed images into a store of vectors.",
        ("lookalike embed --input photos/ --output store",
         "lookalike embed --input photos/ --output store --backbone mobilenet_v2 --pca 256"),
        ("input", "output", "backbone", "weights", "bundle", "recipe", "pca", "image_size",
         "labels", "workers"),
    ),
    "index": Verb(
        settings.IndexSettings, "jobs.indexing.index", "Build a sharded IVF index from a store.",
        ("lookalike index --embeddings store --output index",
         "lookalike index --embeddings vectors.npy --output index --metric l2",
         "lookalike index --embeddings store --output index --export-faiss all.faiss"),
        ("embeddings", "output", "metric", "max_index_memory", "index_factory", "ids",
         "embedding_column", "export_faiss", "overwrite", "workers"),
    ),
    "rank": Verb(
        settings.RankSettings, "jobs.ranking.rank",
        "Find the most similar gallery images of each query.",
        ("lookalike rank --index index --queries new/ --output matches",
         "lookalike rank --index index --queries store --output out --exclude-self --unique-pairs",
         "lookalike rank --index index --queries new/ --output cats --filter \"label = 'cat'\""),
        ("index", "queries", "output", "top_k", "recall", "filter", "exclude_self", "min_score",
         "format", "workers"),
    ),
    "evaluate": Verb(
        settings.EvaluateSettings, "jobs.evaluation.evaluate",
        "Measure the quality of matches against labels.",
        ("lookalike evaluate --matches matches --labels labels.csv",
         "lookalike evaluate --matches matches --compare earlier --fail-below map=0.6",
         "lookalike evaluate --matches matches --calibrate calibration.json"),
        ("matches", "labels", "qrels", "cutoffs", "intervals_over", "compare", "exact_matches",
         "fail_below", "calibrate", "all_measures"),
    ),
    "report": Verb(
        settings.ReportSettings, "jobs.reporting.report",
        "Write an HTML report of matches with pictures.",
        ("lookalike report --matches matches --output report.html",
         "lookalike report --matches matches --output report.html --format html,png"),
        ("matches", "output", "format", "labels", "qrels", "compare", "title", "max_queries",
         "workers"),
    ),
    "train": Verb(
        settings.TrainSettings, "jobs.training.train", "Train a bundle on labelled images.",
        ("lookalike train --data photos/ --output bundle",
         "lookalike train --data photos/ --output bundle --backbone resnet18 --unfreeze last:2"),
        ("data", "output", "backbone", "weights", "labels", "objective", "epochs", "augment",
         "split_by", "device"),
    ),
    "predict": Verb(
        settings.PredictSettings, "jobs.commands.predict",
        "Classify images with a bundle written by train.",
        ("lookalike predict --input photos/ --bundle bundle --output classes",),
        ("input", "bundle", "output", "labels", "image_column", "limit", "max_error_rate",
         "device", "overwrite", "workers"),
    ),
    "compare": Verb(
        settings.CompareSettings, "jobs.comparison.compare",
        "Compare backbones on labelled images, or list them.",
        ("lookalike compare",
         "lookalike compare --data photos/ --output comparison --backbones resnet50,mobilenet_v2"),
        ("data", "output", "backbones", "weights", "bundle", "labels", "pca", "limit",
         "overwrite", "workers"),
    ),
    "verify": Verb(
        settings.VerifySettings, "jobs.commands.verify",
        "Check that an output is complete and unaltered.",
        ("lookalike verify result",),
        ("measure_recall", "json", "debug"),
    ),
    "plan": Verb(
        settings.PlanSettings, "jobs.planning.plan",
        "Estimate the time, memory and disk space of a run.",
        ("lookalike plan --gallery photos/ --queries new/",
         'lookalike plan --gallery s3://bucket/photos --cluster "20x(16cpu,1gpu)"'),
        ("gallery", "queries", "output", "backbone", "weights", "top_k", "recall", "cluster",
         "sample", "workers"),
    ),
    "demo": Verb(
        settings.DemoSettings, "jobs.commands.demo", "Run every step on generated sample images.",
        ("lookalike demo --output demo-output",),
        ("output", "all_measures", "seed", "json", "debug"),
    ),
}  # fmt: skip
