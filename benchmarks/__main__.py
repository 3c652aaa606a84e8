"""Run what is claimed again, and compare: `make bench`, or `make bench-quick`.

python -m benchmarks [--quick] [NAME …]

Each measurement of claims.yaml is a command; what it prints is kept in bench-output/NAME.json. One
whose command names a variable (PHOTOS, WEIGHTS, …) that the environment lacks is left out, and said
to be. Ends with 1 if a command failed or a figure lies beyond its tolerance.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.claims import Measurement, measurements, written
from benchmarks.told import kept

_OUTPUT = Path("bench-output")


def main() -> None:
    """Run the measurements that are asked for, one after the other."""
    known = measurements()
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="those that take 10 minutes together")
    parser.add_argument("names", nargs="*", metavar="NAME")
    asked = parser.parse_args()
    if unknown := set(asked.names) - {one.name for one in known}:
        parser.error(f"no measurement is named {', '.join(sorted(unknown))}")
    wanted = [one for one in known if one.name in asked.names or not asked.names]
    began = time.perf_counter()
    beyond = sum(_again(one) for one in wanted if one.runs() and (one.quick or not asked.quick))
    print(f"{(time.perf_counter() - began) / 60:.1f} minutes; {beyond} figures beyond tolerance")
    sys.exit(beyond > 0)


def _again(measurement: Measurement) -> int:
    """Run one command; print its claims beside what is found, and count those that differ."""
    if missing := [name for name in measurement.needs() if name not in os.environ]:
        print(f"{measurement.name}: left out, since {', '.join(missing)} is not set", flush=True)
        return 0
    output = _OUTPUT / f"{measurement.name}.json"
    output.unlink(missing_ok=True)
    words = shlex.split(os.path.expandvars(measurement.command))
    command = [sys.executable, *words[1:]] if words[0] == "python" else words
    began = time.perf_counter()
    environment = os.environ | {"LOOKALIKE_BENCH": str(output)}
    done = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=False)
    print(f"{measurement.name}: {time.perf_counter() - began:.0f} s", flush=True)
    if done.returncode or not output.exists():
        print(f"  failed with {done.returncode}: {measurement.command}", flush=True)
        return 1
    found, beyond = kept(output), 0
    for claim in measurement.claims:
        if claim.at is not None:
            off = claim.differs(found)
            beyond += len(off)
            for name, claimed, now in off:
                print(f"  {claim.says} {name}: claimed {claimed:g}, now {now:g}", flush=True)
            if not off:
                print(f"  {claim.says}: {written(claim.figure)} holds", flush=True)
    return beyond


if __name__ == "__main__":
    main()
