"""Program that decodes a folder of images and measures memory and time.

    python -m tests.retrieval.images.measure_decoding FOLDER MAX_PIXELS REPORT

The address space is limited, and an attempt to start a program ends the process. The report is
JSON: peak memory (bytes) above that after decoding all valid images, the slowest image (seconds,
name), and the number of images by outcome.
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
from tests.retrieval.images.valid_images import valid_images

ADDRESS_SPACE = 6 << 30
TRANSFORM = Transform("crop", 40, 32, "bilinear", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))


def refuse_to_start_program(*args, **options):
    # SystemExit is no Exception, so that no handler of a decoder catches it
    raise SystemExit(f"a program was started: {args}")


def peak_memory():
    """Return the peak resident memory of this process, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def outcome(data, max_pixels):
    """Decode an image; return "row", or the name of the exception raised."""
    try:
        decode(data, TRANSFORM, max_pixels=max_pixels)
    except (MemoryError, Exception) as error:  # noqa: BLE001 - decoders raise any exception
        return type(error).__name__
    return "row"


def main(folder, max_pixels, report):
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    subprocess.Popen = os.system = os.execv = os.posix_spawn = os.fork = refuse_to_start_program
    for data in valid_images().values():
        decode(data, TRANSFORM, max_pixels=10**6)
    before, slowest, outcomes = peak_memory(), (0.0, ""), {}
    for path in sorted(Path(folder).iterdir()):
        data = path.read_bytes()
        start = time.process_time()
        result = outcome(data, int(max_pixels))
        slowest = max(slowest, (time.process_time() - start, path.name))
        outcomes[result] = outcomes.get(result, 0) + 1
    measurements = {"peak": peak_memory() - before, "slowest": slowest, "outcomes": outcomes}
    Path(report).write_text(json.dumps(measurements))


if __name__ == "__main__":
    main(*sys.argv[1:])
