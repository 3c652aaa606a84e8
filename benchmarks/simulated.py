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
from retrieval.store.reader import put_part

CHUNK_ROWS = 10
LEDGER_EVERY = 20  # of so many chunks one has an image that failed
FAULT_EVERY = 1000  # of so many tries one meets a fault, of each kind

_KINDS = ("failures", "parts")
_PIECE = re.compile(r"segments/00000/(failures|parts)/(\d{8})\.parquet")
_BLANK = b"chunk-00000000"


class Bucket(Folder):
    """A store's folder of one segment: a byte for each part and ledger, all else on the disk.

    The bytes of a piece follow from its number, and are made when they are asked for. Of some puts
    the answer is lost: the file is there, and whoever put it hears that another one was.
    """

    def __init__(self, scratch: Path, chunks: int) -> None:
        self._disk = LocalFolder(str(scratch / "store"))
        self._saved, self._chunks = scratch / "there", chunks
        there = self._saved.read_bytes() if self._saved.exists() else bytes(2 * chunks)
        self._there = dict(
            zip(_KINDS, (bytearray(there[:chunks]), bytearray(there[chunks:])), strict=True)
        )
        self._molds = [_mold(rows) for rows in range(CHUNK_ROWS + 1)]
        self._draws = random.Random(1)
        self.counts: Counter[str] = Counter()  # what the driver did: listings, reads

    def save(self) -> None:
        """Leave the folder to the next process."""
        self._saved.write_bytes(b"".join(self._there.values()))

    def made(self, kind: str, number: int) -> bytes | None:
        """Give the bytes that a chunk's part or ledger has; None where it has no ledger."""
        rows = self._rows(kind, number)
        if not rows:
            return None
        return fill_checksum(self._molds[rows].replace(_BLANK, b"chunk-%08d" % number))

    def _rows(self, kind: str, number: int) -> int:
        failed = int(number % LEDGER_EVERY == 0)
        return failed if kind == "failures" else CHUNK_ROWS - failed

    def uri(self, path: str = "") -> str:
        return self._disk.uri(path)

    def child(self, path: str) -> Folder:
        return self._disk.child(path)

    def open(self, path: str) -> BinaryIO:
        piece = _PIECE.fullmatch(path)
        if piece is None:
            return self._disk.open(path)
        self.counts["reads"] += 1
        if not self._there[piece[1]][int(piece[2])]:
            raise FileNotFoundError(path)
        return io.BytesIO(self.made(piece[1], int(piece[2])) or b"")

    def entries(self, below: str = "") -> Iterator[Entry]:
        yield from self._disk.entries(below)
        if below not in ("", "segments"):
            return
        self.counts["listings"] += 1
        for kind, there in self._there.items():
            sizes = [len(mold) for mold in self._molds]
            for number, is_there in enumerate(there):
                if is_there:
                    path = f"segments/00000/{kind}/{number:08d}.parquet"
                    yield Entry(path, sizes[self._rows(kind, number)])

    def put(self, path: str, data: bytes) -> None:
        self._disk.put(path, data)

    def put_new(self, path: str, data: bytes) -> bool:
        piece = _PIECE.fullmatch(path)
        if piece is None:
            return self._disk.put_new(path, data)
        there = self._there[piece[1]]
        was, there[int(piece[2])] = there[int(piece[2])], 1
        return not was and self._draws.randrange(FAULT_EVERY) > 0

    def put_new_file(self, path: str, write: Callable[[str], None]) -> bool:
        return self._disk.put_new_file(path, write)

    def delete(self, path: str) -> None:
        if piece := _PIECE.fullmatch(path):
            self._there[piece[1]][int(piece[2])] = 0
        else:
            self._disk.delete(path)


def _mold(rows: int) -> bytes:
    """Make a small Parquet file that is not sealed yet."""
    table = pa.table({"row": pa.array(range(rows), pa.int64())})
    sink = io.BytesIO()
    with parquet_writer(sink, table.schema, {"chunk": _BLANK.decode()}) as writer:
        writer.write_table(table)
    return sink.getvalue()


@dataclass(frozen=True)
class Prepared:
    """Stands where a model is made ready, and gives what one worker does with a chunk."""

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
        part, ledger = (self.bucket.made(kind, chunk.number) for kind in ("parts", "failures"))
        lost = 0 if ledger is None else 1
        records = put_part(self.bucket, chunk, part or b"", ledger)
        return ChunkResult(chunk.number, CHUNK_ROWS - lost, lost, records, seconds=1.0)


class Team:
    """Stands where `pool.stream` gives chunks to workers: each takes one, in rounds.

    A worker may die before its chunk or after it; its answer may be lost, or come twice.
    """

    def __init__(
        self, bucket: Bucket, meter: Meter, workers: int, step: str, killed_at: int = -1
    ) -> None:
        self.workers = workers
        self._bucket, self._meter, self._step = bucket, meter, step
        self._killed_at, self._done, self._heard = killed_at, 0, 0
        self._failure_log, self._draws = FailureLog(), random.Random(0)

    def stream(
        self, where: Cluster, make: actor_pool.MakeWork, items: list[int], shared: Any, *_: Any
    ) -> Iterator[dict[str, Any]]:
        """Give the answers, read, watched and handed over as those of Ray are."""
        self._meter.begin(self._step, self._bucket)
        self._work, self._items = make(shared), items
        yield from watch_for_stalls(actor_pool.read_answers(where, self), self)
        del self._work, self._items
        self._failure_log = FailureLog()  # lost together with what the pool holds
        self._meter.begin("finish", self._bucket)

    def moved(self) -> bool:
        """Read from the failure log what the stall detector reads."""
        with self._meter.apart("failure log"):
            heard = self._failure_log.summary().messages
        before, self._heard = self._heard, heard
        return heard != before

    def waiting(self) -> str:
        return "simulated workers wait for each other"

    def iter_batches(self, **_: Any) -> Iterator[dict[str, list[str]]]:
        """Give a round's answers at a time, as Ray Data gives blocks."""
        waiting = deque(self._items)
        while waiting:
            taken = [waiting.popleft() for _ in range(min(self.workers, len(waiting)))]
            with self._meter.apart("failure log"):
                begun = [(number, self._failure_log.begin(number)) for number in taken]
            before = Counter(self._bucket.counts)
            with self._meter.apart("workers"):
                done = {number: self._answer(number, attempt) for number, attempt in begun}
            self._bucket.counts = before  # what workers read is not the driver's
            ended = [number for number, answer in done.items() if answer]
            with self._meter.apart("failure log"):
                for number in ended:
                    self._failure_log.end(number)
            waiting.extend(number for number, answer in done.items() if not answer)
            lost = {number for number in ended if self._hits()}
            waiting.extend(lost)
            arrived = [number for number in ended if number not in lost]
            arrived += [number for number in arrived if self._hits()]
            yield {"answer": [done[number] for number in arrived]}
            self._done += len(ended)
            if 0 <= self._killed_at <= self._done:
                raise KeyboardInterrupt

    def _answer(self, number: int, attempt: Any) -> str:
        """Do a chunk as a worker does; nothing where it died, before the chunk or after it."""
        if self._hits():
            return ""
        done = self._work(number, attempt)
        return "" if self._hits() else json.dumps({"done": done, "peak": 0})

    def _hits(self) -> bool:
        return self._draws.randrange(FAULT_EVERY) == 0


class Meter:
    """Tells for each step its processor time, what of it was not the driver's, and its memory.

    Memory is that of the process: at the beginning of a step, and the most in it. The simulated
    folder is two bytes a chunk of it; the failure log and items in flight count until all are done.
    """

    def __init__(self) -> None:
        self._steps: dict[str, dict[str, Any]] = {}
        self._now = ""
        self._apart: dict[str, float] = defaultdict(float)

    def begin(self, name: str, bucket: Bucket | None = None) -> None:
        """End a step and begin the next; memory is counted anew."""
        self._end()
        self._now, self._bucket, self._apart = name, bucket, defaultdict(float)
        if bucket is not None:
            bucket.counts.clear()
        Path("/proc/self/clear_refs").write_text("5")
        self._before = _memory_mb("VmRSS")
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    @contextmanager
    def apart(self, whose: str) -> Iterator[None]:
        """Count what happens here as another process' work; the time is this thread's alone."""
        began = time.thread_time()
        yield
        self._apart[whose] += time.thread_time() - began

    def steps(self) -> dict[str, Any]:
        """End the last step, and give all of them."""
        self._end()
        return self._steps

    def _end(self) -> None:
        if not self._now:
            return
        cpu = time.process_time() - self._cpu - sum(self._apart.values())
        counts = self._bucket.counts if self._bucket else {}
        self._steps[self._now] = {
            "driver_seconds": round(cpu, 3),
            **{f"{whose}_seconds": round(spent, 3) for whose, spent in self._apart.items()},
            "wall_seconds": round(time.perf_counter() - self._wall, 3),
            "begun_mb": self._before,
            "peak_mb": _memory_mb("VmHWM"),
            **{what: count for what, count in counts.items() if count},
        }
        self._now = ""


def _memory_mb(what: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{what}:")[1].split()[0]) // 1000
