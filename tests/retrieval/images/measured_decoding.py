"""Decode a folder of images in a process of its own, and write down what it took.

    python -m tests.retrieval.images.measured_decoding FOLDER MAX_PIXELS REPORT

The address space is bounded, and whoever starts a program is stopped. The report is JSON: peak
memory above that after a sound photo of each format, the slowest image, counts of outcomes.
"""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from retrieval.core.records import Transform
from retrieval.images.decode import decode
from tests.retrieval.images.odd_files_valid import sounds

ADDRESS_SPACE = 6 << 30
PLAIN = Transform("crop", 40, 32, "bilinear", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))


def no_program(*args, **options):
    # not an Exception, so that no except of a decoder hides it
    raise SystemExit(f"a program was started: {args}")


def peak():
    """The most memory this process has held so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def outcome(data, max_pixels):
    try:
        decode(data, PLAIN, max_pixels=max_pixels)
    except (MemoryError, Exception) as error:  # noqa: BLE001 - decoders raise anything at all
        return type(error).__name__
    return "row"


def main(folder, max_pixels, report):
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    subprocess.Popen = os.system = os.execv = os.posix_spawn = os.fork = no_program
    for data in sounds().values():
        decode(data, PLAIN, max_pixels=10**6)
    before, slowest, outcomes = peak(), (0.0, ""), {}
    for path in sorted(Path(folder).iterdir()):
        data = path.read_bytes()
        began = time.process_time()
        found = outcome(data, int(max_pixels))
        slowest = max(slowest, (time.process_time() - began, path.name))
        outcomes[found] = outcomes.get(found, 0) + 1
    answer = {"peak": peak() - before, "slowest": slowest, "outcomes": outcomes}
    Path(report).write_text(json.dumps(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
