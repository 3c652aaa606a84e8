"""Matches in further formats: export formats, duplicates, a report and pictures.

Each file is written once, together with its checksum.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from jobs.cluster.resources import Cluster
from jobs.config.options import parse_comma_list
from jobs.config.settings import RankSettings
from jobs.ranking.duplicates import RankedStores, read_duplicate_counts, write_duplicates
from jobs.runtime.progress import print_message
from retrieval.core.errors import UsageError
from retrieval.core.records import FileRecord
from retrieval.storage import transaction
from retrieval.storage.checksum import checksummed_json
from retrieval.storage.finished_output import Manifest
from retrieval.storage.local import Folder
from retrieval.storage.temporary import TEMPORARY_PREFIX

REPORT, PICTURES = "report.html", "pictures"


def parse_formats(settings: RankSettings) -> tuple[str, ...]:
    """Return the formats of --format without parquet, each once; raise UsageError if unknown."""
    from retrieval.search.export_formats import FORMAT_WRITERS

    supported = ("parquet", *FORMAT_WRITERS, "html", "png")
    names = parse_comma_list(settings.format)
    for name in names:
        if name not in supported:
            raise UsageError(f"--format {name!r}: write one or more of {','.join(supported)}")
    return tuple(dict.fromkeys(name for name in names if name != "parquet"))


@dataclass(frozen=True)
class ExtraFiles:
    """Files to write beside the matches, as requested by --format and --unique-pairs."""

    formats: tuple[str, ...]
    duplicates: tuple[str, ...]

    def any_missing(self, existing: Container[str]) -> bool:
        """Return whether one of the files is not among the existing paths."""
        required = [REPORT if name == "html" else _checksum_path(name) for name in self.formats]
        return any(path not in existing for path in (*required, *self.duplicates))

    def write(
        self, folder: Folder, counts: dict[str, Any], stores: RankedStores, cluster: Cluster
    ) -> dict[str, Any]:
        """Write the files that are missing, from the matches in the folder.

        Returns the counts of the manifest, with those of duplicates.
        """
        matches = _table_reader(folder, "matches")
        write_duplicates(folder, self.duplicates, matches, counts["metric"], stores)
        counts = {**counts, **read_duplicate_counts(folder)}
        for name in self.formats:
            if name == "html":
                _write_report(folder, counts, cluster)
            elif name == "png":
                _write_pictures(folder, counts)
            elif not folder.exists(_checksum_path(name)):
                _write_format(folder, name, counts["metric"])
        return counts


def format_extra_files(files: Mapping[str, FileRecord]) -> tuple[str, ...]:
    """Format lines for the result that name the extra files beside the matches."""
    from retrieval.search.export_formats import FORMAT_FILES

    existing = [path for path in (*FORMAT_FILES.values(), REPORT) if path in files]
    lines = [f"further files: {', '.join(existing)}"] if existing else []
    if pictures := sum(path.startswith(f"{PICTURES}/") for path in files):
        lines.append(f"{pictures} pictures: {PICTURES}/")
    return tuple(lines)


def _checksum_path(name: str) -> str:
    return f"{name}.sum.json"


def _table_reader(folder: Folder, prefix: str) -> Callable[[], Iterator[pa.Table]]:
    """Return a function that iterates over the tables below `prefix` from the start."""
    from retrieval.storage.checksum import read_checksummed_parquet

    def tables() -> Iterator[pa.Table]:
        paths = sorted(entry.path for entry in folder.entries(prefix))
        for path in paths:
            if TEMPORARY_PREFIX not in path:
                yield read_checksummed_parquet(folder, path)

    return tables


def _write_format(folder: Folder, name: str, metric: Any) -> None:
    from retrieval.search.export_formats import FORMAT_FILES, FinishedMatches, write_export

    finished = FinishedMatches(
        _table_reader(folder, "matches"), _table_reader(folder, "failures"), metric
    )

    def write(local: str) -> None:
        with open(local, "wb") as file:
            write_export(name, finished, file)

    path = FORMAT_FILES[name]
    folder.delete(path)  # left by a run that was killed before it wrote the checksum
    folder.put_new_file(path, write)
    with folder.open(path) as file:
        record = transaction.read_file_record(path, file)
    transaction.put_if_absent(
        folder, _checksum_path(name), checksummed_json({"files": {path: record.sha256}})
    )


def _write_report(folder: Folder, counts: dict[str, Any], cluster: Cluster) -> None:
    from jobs.evaluation.evaluate_matches import evaluate_by_labels
    from jobs.reporting.write_report import build_report_source, write_report

    matches = _expected_manifest(folder, counts)
    evaluation, _ = evaluate_by_labels(folder, matches)
    write_report(cluster, build_report_source(folder, matches, evaluation), folder, REPORT)


def _write_pictures(folder: Folder, counts: dict[str, Any]) -> None:
    from jobs.config.settings import RelevanceOptions
    from jobs.evaluation.ground_truth import open_ground_truth
    from jobs.reporting.pictures import draw_pictures

    if folder.exists(_checksum_path("png")):
        return
    # left by a run that was killed before it wrote the checksums
    for entry in list(folder.entries(PICTURES)):
        folder.delete(entry.path)
    matches = _expected_manifest(folder, counts)
    pictures = draw_pictures(
        folder, matches, open_ground_truth(folder, matches, RelevanceOptions()), note=print_message
    )
    files = {f"{PICTURES}/{name}": data for name, data in pictures.items()}
    transaction.put_with_checksums(folder, files, _checksum_path("png"))


def _expected_manifest(folder: Folder, counts: dict[str, Any]) -> Manifest:
    """Return a manifest of unfinished matches, with only those fields that reports read."""
    return Manifest("matches", "", "", counts, "", transaction.collect_records(folder))
