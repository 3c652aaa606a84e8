"""Finished matches in further formats, each put once beside them and named with its checksum."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from jobs.cluster.resources import Cluster
from jobs.config.settings import RankSettings
from jobs.runtime.progress import say
from retrieval.core.errors import UsageError
from retrieval.core.records import FileRecord
from retrieval.storage import transaction
from retrieval.storage.checksum import sealed_json
from retrieval.storage.finished_output import Manifest
from retrieval.storage.local import Folder
from retrieval.storage.temporary import TEMPORARY

PAIRS, REPORT, PICTURES = "pairs.parquet", "report.html", "pictures"


def formats_of(settings: RankSettings) -> tuple[str, ...]:
    """Read --format, or refuse what it names."""
    from retrieval.search.export_formats import FORMATS

    known = ("parquet", *FORMATS, "html", "png")
    names = [name.strip() for name in (settings.format or "").split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise UsageError(f"--format {name!r}: write one or more of {','.join(known)}")
    return tuple(dict.fromkeys(name for name in names if name != "parquet"))


@dataclass(frozen=True)
class Further:
    """The files asked for beside the matches."""

    formats: tuple[str, ...]
    pairs: bool

    def missing(self, there: Any) -> bool:
        """Tell whether one of them is not among the files that are there, by path."""
        wanted = [REPORT if name == "html" else _sum(name) for name in self.formats]
        return any(path not in there for path in [*wanted, *([PAIRS] if self.pairs else [])])

    def put(self, folder: Folder, counts: dict[str, Any], where: Cluster) -> None:
        """Put those that are not there, from the matches that are."""
        if self.pairs and not folder.exists(PAIRS):
            _put_pairs(folder, counts["metric"])
        for name in self.formats:
            if name == "html":
                _put_report(folder, counts, where)
            elif name == "png":
                _put_pictures(folder, counts)
            elif not folder.exists(_sum(name)):
                _put_format(folder, name, counts["metric"])


def further_lines(files: Mapping[str, FileRecord]) -> tuple[str, ...]:
    """Say which files lie beside the matches."""
    from retrieval.search.export_formats import FILE_OF

    there = [path for path in (*FILE_OF.values(), REPORT) if path in files]
    said = [f"further files: {', '.join(there)}"] if there else []
    if pictures := sum(path.startswith(f"{PICTURES}/") for path in files):
        said.append(f"{pictures} pictures: {PICTURES}/")
    if PAIRS in files:
        said.append(f"{files[PAIRS].rows} pairs, closest first: {PAIRS}")
    return tuple(said)


def _sum(name: str) -> str:
    return f"{name}.sum.json"


def _tables(folder: Folder, prefix: str) -> Callable[[], Iterator[pa.Table]]:
    """Give what streams the tables below a folder of an output, as often as it is called."""
    from retrieval.store.reader import read_sealed

    def tables() -> Iterator[pa.Table]:
        paths = sorted(entry.path for entry in folder.entries(prefix))
        yield from (read_sealed(folder, path) for path in paths if TEMPORARY not in path)

    return tables


def _put_format(folder: Folder, name: str, metric: Any) -> None:
    from retrieval.search.export_formats import FILE_OF, Finished, write_matches

    finished = Finished(_tables(folder, "matches"), _tables(folder, "failures"), metric)

    def write(local: str) -> None:
        with open(local, "wb") as file:
            write_matches(name, finished, file)

    path = FILE_OF[name]
    folder.delete(path)  # of a run that was killed before it put the checksum
    folder.put_new_file(path, write)
    with folder.open(path) as file:
        record = transaction.record_of(path, file)
    transaction.put_once(folder, _sum(name), sealed_json({"files": {path: record.sha256}}))


def _put_pairs(folder: Folder, metric: Any) -> None:
    from retrieval.search.pairs import write_pairs
    from retrieval.storage.checksum import seal_file

    def write(local: str) -> None:
        with open(local, "wb") as file:
            write_pairs(_tables(folder, "matches")(), metric, file)
        seal_file(Path(local))

    folder.put_new_file(PAIRS, write)


def _put_report(folder: Folder, counts: dict[str, Any], where: Cluster) -> None:
    from jobs.reporting.write_report import put_report, report_of

    made = _unfinished(folder, counts)
    put_report(where, report_of(folder, made), folder, REPORT)


def _put_pictures(folder: Folder, counts: dict[str, Any]) -> None:
    from jobs.config.option_groups import Judging
    from jobs.evaluation.ground_truth import open_truth
    from jobs.reporting.pictures import pictures_of

    if folder.exists(_sum("png")):
        return
    for entry in list(folder.entries(PICTURES)):  # of a run that was killed before the checksums
        folder.delete(entry.path)
    matches = _unfinished(folder, counts)
    made = pictures_of(folder, matches, open_truth(folder, matches, Judging()), note=say)
    named = {f"{PICTURES}/{name}": data for name, data in made.items()}
    transaction.put_named(folder, named, _sum("png"))


def _unfinished(folder: Folder, counts: dict[str, Any]) -> Manifest:
    """Give what the manifest of these matches will be, as far as it is read here."""
    return Manifest("matches", "", "", counts, "", transaction.records(folder))
