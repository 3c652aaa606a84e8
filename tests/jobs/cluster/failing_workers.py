"""Workers of the embed stage that crash or slow down at marked images.

A mark is appended to a JPEG file, where decoders ignore it. The function that creates the work of a
worker is wrapped, so the library itself has no code for this. `main` runs the command line with
such workers.
"""

import os
import signal
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from jobs.cluster.actor_pool import MakeWork
from jobs.embedding import embed_chunks

KILL_ALWAYS, KILL_ONCE, SLOW_DECODE = b"<kills>", b"<kills once>", b"<slow>"


@dataclass(frozen=True)
class FailingWork:
    """Creates the same work in a worker that obeys the marks of the images it decodes."""

    make_work: MakeWork
    marker: Path  # written at the single crash, or when a slow image is decoded

    def __call__(self, shared):
        from retrieval.sources import photo_reader

        decode_full = photo_reader.decode_full

        def decode_marked(data, **options):
            self._obey_mark(data)
            return decode_full(data, **options)

        photo_reader.decode_full = decode_marked
        return self.make_work(shared)

    def _obey_mark(self, data):
        killed_once = data.endswith(KILL_ONCE) and not self.marker.exists()
        if killed_once:
            self.marker.touch()
        if killed_once or data.endswith(KILL_ALWAYS):
            os.kill(os.getpid(), signal.SIGKILL)
        if data.endswith(SLOW_DECODE):
            self.marker.touch()
            time.sleep(0.5)


def inject_worker_faults(patch, marker):
    """Patch the embed stage so that its workers obey marks."""
    make_work = embed_chunks._chunk_worker
    patch.setattr(
        embed_chunks, "_chunk_worker", lambda *arguments: FailingWork(make_work(*arguments), marker)
    )


def append_mark(path, mark):
    """Append a mark to an image file."""
    with open(path, "ab") as file:
        file.write(mark)


def main():
    """Run the command line with failing workers.

    FAULT_MARKER is the path of the marker file, FAULT_CPUS the number of CPUs of Ray, if set.
    """
    import pytest
    import ray

    from jobs import cli

    with pytest.MonkeyPatch.context() as patch:
        inject_worker_faults(patch, Path(os.environ["FAULT_MARKER"]))
        if cpus := os.environ.get("FAULT_CPUS"):
            patch.setattr(ray, "init", partial(ray.init, num_cpus=int(cpus)))
        cli.main()
