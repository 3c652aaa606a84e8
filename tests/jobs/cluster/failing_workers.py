"""Workers of the embed stage that crash or slow down at marked images.

A mark is appended to a JPEG file, where decoders ignore it. The function that creates the work of a
worker is wrapped, so the library itself has no code for this. `main` runs the command line with
such workers.
"""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from jobs.cluster.actor_pool import MakeWork
from jobs.embedding import decode_stage, embed_chunks

KILL_ALWAYS, KILL_ONCE, SLOW_DECODE = b"<kills>", b"<kills once>", b"<slow>"


@dataclass(frozen=True)
class FailingWork:
    """Creates the same work in a worker that obeys the marks of the images it decodes."""

    make_work: MakeWork
    marker: Path  # written at the single crash, or when a slow image is decoded

    def __call__(self, shared):
        _obey_marks(self.marker)
        return self.make_work(shared)


@dataclass(frozen=True)
class FailingTask:
    """Calls the function of a task in a worker that obeys the marks of the images it decodes."""

    function: Callable
    marker: Path

    def __call__(self, *arguments):
        _obey_marks(self.marker)
        return self.function(*arguments)


def _obey_marks(marker):
    """Make this process obey the marks of the images that it decodes."""
    from retrieval.images.decode import decode_full
    from retrieval.sources import photo_reader

    def decode_marked(data, **options):
        killed_once = data.endswith(KILL_ONCE) and not marker.exists()
        if killed_once:
            marker.touch()
        if killed_once or data.endswith(KILL_ALWAYS):
            os.kill(os.getpid(), signal.SIGKILL)
        if data.endswith(SLOW_DECODE):
            marker.touch()
            time.sleep(0.5)
        return decode_full(data, **options)

    photo_reader.decode_full = decode_marked


def inject_worker_faults(patch, marker):
    """Patch the embed stage so that its workers and the tasks that decode obey marks."""
    make_work = embed_chunks._chunk_worker
    patch.setattr(
        embed_chunks, "_chunk_worker", lambda *arguments: FailingWork(make_work(*arguments), marker)
    )
    patch.setattr(decode_stage, "decode_task", FailingTask(decode_stage.decode_task, marker))


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
