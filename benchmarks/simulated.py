"""Simulated folder, workers and meters for measuring the driver alone (`benchmarks.driver`)."""

from __future__ import annotations

import io
import json
import random
import re
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from jobs.cluster import actor_pool
from jobs.cluster.resources import Cluster
from jobs.cluster.stall_detector import watch_for_stalls
from jobs.cluster.worker_failures import FailureLog
from retrieval.core.records import Chunk, ChunkResult
from retrieval.embedding.write_chunk import read_finished_chunk
from retrieval.storage.checksum import fill_checksum, parquet_writer
from retrieval.storage.local import Entry, Folder, LocalFolder
from retrieval.store.part_writer import put_part

CHUNK_ROWS = 10
LEDGER_EVERY = 20  # every 20th chunk has an image that failed
FAULT_EVERY = 1000  # one in this many operations meets a fault, for each kind of fault

_KINDS = ("failures", "parts")
_PART_OR_LEDGER = re.compile(r"segments/00000/(failures|parts)/(\d{8})\.parquet")
_CHUNK_PLACEHOLDER = b"chunk-00000000"


class Bucket(Folder):
    """The folder of a store with one segment: one byte per part and ledger, other files on disk.

    The content of a part or ledger follows from its number and is generated when read. For some
    writes the response is lost: the file exists, but the writer is told that it existed before.
    """

    def __init__(self, scratch: Path, chunks: int) -> None:
        self._disk = LocalFolder(str(scratch / "store"))
        self._saved, self._chunks = scratch / "there", chunks
        exists = self._saved.read_bytes() if self._saved.exists() else bytes(2 * chunks)
        self._exists = dict(
            zip(_KINDS, (bytearray(exists[:chunks]), bytearray(exists[chunks:])), strict=True)
        )
        self._templates = [_template(rows) for rows in range(CHUNK_ROWS + 1)]
        self._draws = random.Random(1)
        self.counts: Counter[str] = Counter()  # operations of the driver: listings, reads

    def save(self) -> None:
        """Save which parts and ledgers exist, for the next process."""
        self._saved.write_bytes(b"".join(self._exists.values()))

    def content(self, kind: str, number: int) -> bytes | None:
        """Return the bytes of a chunk's part or ledger; None for a ledger without failures."""
        rows = self._rows(kind, number)
        if not rows:
            return None
        return fill_checksum(
            self._templates[rows].replace(_CHUNK_PLACEHOLDER, b"chunk-%08d" % number)
        )

    def _rows(self, kind: str, number: int) -> int:
        failed = int(number % LEDGER_EVERY == 0)
        return failed if kind == "failures" else CHUNK_ROWS - failed

    def uri(self, path: str = "") -> str:
        return self._disk.uri(path)

    def child(self, path: str) -> Folder:
        return self._disk.child(path)

    def open(self, path: str) -> BinaryIO:
        match = _PART_OR_LEDGER.fullmatch(path)
        if match is None:
            return self._disk.open(path)
        self.counts["reads"] += 1
        if not self._exists[match[1]][int(match[2])]:
            raise FileNotFoundError(path)
        return io.BytesIO(self.content(match[1], int(match[2])) or b"")

    def entries(self, below: str = "") -> Iterator[Entry]:
        yield from self._disk.entries(below)
        if below not in ("", "segments"):
            return
        self.counts["listings"] += 1
        for kind, exists in self._exists.items():
            sizes = [len(template) for template in self._templates]
            for number, is_present in enumerate(exists):
                if is_present:
                    path = f"segments/00000/{kind}/{number:08d}.parquet"
                    yield Entry(path, sizes[self._rows(kind, number)])

    def put(self, path: str, data: bytes) -> None:
        self._disk.put(path, data)

    def put_new(self, path: str, data: bytes) -> bool:
        match = _PART_OR_LEDGER.fullmatch(path)
        if match is None:
            return self._disk.put_new(path, data)
        exists = self._exists[match[1]]
        was, exists[int(match[2])] = exists[int(match[2])], 1
        return not was and self._draws.randrange(FAULT_EVERY) > 0

    def put_new_file(self, path: str, write: Callable[[str], None]) -> bool:
        return self._disk.put_new_file(path, write)

    def delete(self, path: str) -> None:
        if match := _PART_OR_LEDGER.fullmatch(path):
            self._exists[match[1]][int(match[2])] = 0
        else:
            self._disk.delete(path)


def _template(rows: int) -> bytes:
    """Return a small Parquet file of `rows` rows, without its checksum."""
    table = pa.table({"row": pa.array(range(rows), pa.int64())})
    sink = io.BytesIO()
    with parquet_writer(sink, table.schema, {"chunk": _CHUNK_PLACEHOLDER.decode()}) as writer:
        writer.write_table(table)
    return sink.getvalue()


@dataclass(frozen=True)
class Prepared:
    """Replacement of `PreparedModel`, whose chunk function writes the content of `Bucket`."""

    bucket: Bucket
    dimension = 8
    unit = "images"
    device = "cpu"

    def with_engine(self) -> Prepared:
        return self

    def for_workers(self) -> Prepared:
        return self

    def make_chunk_function(
        self, folder: Folder, _: Any, __: int
    ) -> Callable[[Chunk, Any], ChunkResult]:
        return lambda chunk, _: read_finished_chunk(folder, chunk) or self._put(chunk)

    def _put(self, chunk: Chunk) -> ChunkResult:
        part, ledger = (self.bucket.content(kind, chunk.number) for kind in ("parts", "failures"))
        failed = 0 if ledger is None else 1
        records = put_part(self.bucket, chunk, part or b"", ledger)
        return ChunkResult(chunk.number, CHUNK_ROWS - failed, failed, records, seconds=1.0)


class Team:
    """Replacement of `actor_pool.stream`: simulated workers process one chunk each per round.

    A worker may crash before or after its chunk; its result may be lost or delivered twice.
    """

    def __init__(
        self, bucket: Bucket, meter: Meter, workers: int, step: str, kill_after: int = -1
    ) -> None:
        self.workers = workers
        self._bucket, self._meter, self._step = bucket, meter, step
        self._kill_after, self._done, self._messages = kill_after, 0, 0
        self._failure_log, self._draws = FailureLog(), random.Random(0)

    def stream(
        self, _cluster: Cluster, make: actor_pool.MakeWork, items: list[int], shared: Any, *_: Any
    ) -> Iterator[dict[str, Any]]:
        """Yield the results, through the same stall detector as those of Ray."""
        self._meter.begin(self._step, self._bucket)
        self._work, self._items = make(shared), items
        yield from watch_for_stalls(self._results(), self)
        del self._work, self._items
        self._failure_log = FailureLog()  # the log ends with the pool
        self._meter.begin("finish", self._bucket)

    def has_activity(self) -> bool:
        """Return whether the failure log got messages since the last call."""
        with self._meter.other_process("failure log"):
            messages = self._failure_log.summary().messages
        previous, self._messages = self._messages, messages
        return messages != previous

    def describe_wait(self) -> str:
        return "simulated workers wait for each other"

    def _results(self) -> Iterator[dict[str, Any]]:
        """Yield the results of one round after another."""
        pending = deque(self._items)
        while pending:
            batch = [pending.popleft() for _ in range(min(self.workers, len(pending)))]
            with self._meter.other_process("failure log"):
                attempts = [(number, self._failure_log.begin(number)) for number in batch]
            previous_counts = Counter(self._bucket.counts)
            with self._meter.other_process("workers"):
                results = {number: self._run_chunk(number, attempt) for number, attempt in attempts}
            self._bucket.counts = previous_counts  # reads of workers do not count for the driver
            finished = [number for number, result in results.items() if result]
            with self._meter.other_process("failure log"):
                for number in finished:
                    self._failure_log.end(number)
            pending.extend(number for number, result in results.items() if not result)
            lost = {number for number in finished if self._fault_occurs()}
            pending.extend(lost)
            delivered = [number for number in finished if number not in lost]
            delivered += [number for number in delivered if self._fault_occurs()]
            for number in delivered:
                yield json.loads(results[number])
            self._done += len(finished)
            if 0 <= self._kill_after <= self._done:
                raise KeyboardInterrupt

    def _run_chunk(self, number: int, attempt: Any) -> str:
        """Process a chunk like a worker; return "" if it crashed before or after the chunk."""
        if self._fault_occurs():
            return ""
        result = self._work(number, attempt)
        return "" if self._fault_occurs() else json.dumps(result)

    def _fault_occurs(self) -> bool:
        return self._draws.randrange(FAULT_EVERY) == 0


class Meter:
    """Measures the processor time of each step, for the driver and other processes, and memory.

    Memory is that of this process at the beginning of a step and at its peak. It includes the
    simulated folder (two bytes per chunk), the failure log and the items in flight.
    """

    def __init__(self) -> None:
        self._steps: dict[str, dict[str, Any]] = {}
        self._step_name = ""
        self._other_seconds: dict[str, float] = defaultdict(float)

    def begin(self, name: str, bucket: Bucket | None = None) -> None:
        """End the current step and begin the next; the peak of memory is reset."""
        self._end()
        self._step_name, self._bucket, self._other_seconds = name, bucket, defaultdict(float)
        if bucket is not None:
            bucket.counts.clear()
        Path("/proc/self/clear_refs").write_text("5")
        self._before = _memory_mb("VmRSS")
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    @contextmanager
    def other_process(self, process: str) -> Iterator[None]:
        """Count the processor time of this thread in the context as that of another process."""
        started = time.thread_time()
        yield
        self._other_seconds[process] += time.thread_time() - started

    def steps(self) -> dict[str, Any]:
        """End the last step and return the figures of all steps."""
        self._end()
        return self._steps

    def _end(self) -> None:
        if not self._step_name:
            return
        cpu = time.process_time() - self._cpu - sum(self._other_seconds.values())
        counts = self._bucket.counts if self._bucket else {}
        self._steps[self._step_name] = {
            "driver_seconds": round(cpu, 3),
            **{
                f"{process}_seconds": round(seconds, 3)
                for process, seconds in self._other_seconds.items()
            },
            "wall_seconds": round(time.perf_counter() - self._wall, 3),
            "begun_mb": self._before,
            "peak_mb": _memory_mb("VmHWM"),
            **{name: count for name, count in counts.items() if count},
        }
        self._step_name = ""


def _memory_mb(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) // 1000
