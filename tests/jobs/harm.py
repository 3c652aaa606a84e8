"""Workers that die or hang at marked images, without a line of it in the product.

The marks stand behind the last byte of a JPEG, where no decoder looks. Workers are harmed by what
they are given to make their work with. As a program this is the command line with such workers:
`python -m tests.jobs.harm embed INPUT …`.
"""

import os
import signal
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from jobs.cluster.actor_pool import MakeWork
from jobs.embedding import embed_chunks

KILLS, KILLS_ONCE, SLOW = b"<kills>", b"<kills once>", b"<slow>"


@dataclass(frozen=True)
class Harmed:
    """Makes the same work, in a process that does what the marks say when it decodes them."""

    make: MakeWork
    once: Path  # a file that tells that the one death has been, or that a slow image is at hand

    def __call__(self, shared):
        from retrieval.embedding import embed_batch

        decode = embed_batch.decode

        def marked(data, *transform, **options):
            self.suffer(data)
            return decode(data, *transform, **options)

        embed_batch.decode = marked
        return self.make(shared)

    def suffer(self, data):
        once = data.endswith(KILLS_ONCE) and not self.once.exists()
        if once:
            self.once.touch()
        if once or data.endswith(KILLS):
            os.kill(os.getpid(), signal.SIGKILL)
        if data.endswith(SLOW):
            self.once.touch()
            time.sleep(0.5)


def harm(patch, once):
    """Let the workers of the embed stage be harmed."""
    make = embed_chunks._worker
    patch.setattr(embed_chunks, "_worker", lambda *given: Harmed(make(*given), once))


def mark(path, what):
    """Mark an image."""
    with open(path, "ab") as file:
        file.write(what)


def main():
    """Be the command line, with the file HARM_ONCE, and on HARM_CPUS processors if that is set."""
    import pytest
    import ray

    from jobs import cli

    with pytest.MonkeyPatch.context() as patch:
        harm(patch, Path(os.environ["HARM_ONCE"]))
        if cpus := os.environ.get("HARM_CPUS"):
            patch.setattr(ray, "init", partial(ray.init, num_cpus=int(cpus)))
        cli.main()
