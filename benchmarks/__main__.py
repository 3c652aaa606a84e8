"""Run the benchmarks again and compare with the recorded results (`make bench`, `bench-quick`).

    python -m benchmarks [--quick] [NAME …]

Each benchmark of results.yaml is a command; its JSON is kept in bench-output/NAME.json. Benchmarks
whose command names an environment variable (PHOTOS, WEIGHTS, …) that is not set are left out with a
message. The exit code is 1 if a command failed or a value deviates by more than its tolerance.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.output import read_result
from benchmarks.results import Benchmark, benchmarks, format_value

_OUTPUT = Path("bench-output")


def main() -> None:
    """Run the requested benchmarks one after the other."""
    available = benchmarks()
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="those that take 10 minutes together")
    parser.add_argument("names", nargs="*", metavar="NAME")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - {benchmark.name for benchmark in available}:
        parser.error(f"no benchmark is named {', '.join(sorted(unknown))}")
    selected = [
        benchmark
        for benchmark in available
        if (not arguments.names or benchmark.name in arguments.names)
        and benchmark.repeatable()
        and (benchmark.quick or not arguments.quick)
    ]
    started = time.perf_counter()
    problems = sum(run_again(benchmark) for benchmark in selected)
    print(f"{(time.perf_counter() - started) / 60:.1f} minutes; {problems} deviations or failures")
    sys.exit(problems > 0)


def run_again(benchmark: Benchmark) -> int:
    """Run one benchmark, print its results beside the recorded ones, and count deviations."""
    if missing := [name for name in benchmark.variables() if name not in os.environ]:
        print(f"{benchmark.name}: skipped, {', '.join(missing)} is not set", flush=True)
        return 0
    output = _OUTPUT / f"{benchmark.name}.json"
    output.unlink(missing_ok=True)
    words = shlex.split(os.path.expandvars(benchmark.command))
    command = [sys.executable, *words[1:]] if words[0] == "python" else words
    started = time.perf_counter()
    environment = os.environ | {"LOOKALIKE_BENCH": str(output)}
    process = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=False)
    print(f"{benchmark.name}: {time.perf_counter() - started:.0f} s", flush=True)
    if process.returncode or not output.exists():
        print(f"  failed with {process.returncode}: {benchmark.command}", flush=True)
        return 1
    measured, count = read_result(output), 0
    for result in benchmark.results:
        if result.at is None:
            continue
        deviations = result.deviations(measured)
        count += len(deviations)
        for name, old, new in deviations:
            print(f"  {result.label} {name}: recorded {old:g}, now {new:g}", flush=True)
        if not deviations:
            print(f"  {result.label}: {format_value(result.value)} confirmed", flush=True)
    return count


if __name__ == "__main__":
    main()
