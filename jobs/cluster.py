"""The only file that knows how Ray is reached, sized, fed and shut down.

What runs on it are plain functions of the library. Work items are small (chunk numbers, shard
numbers), results are small, and both are streamed.
"""

from __future__ import annotations

import os
import queue
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from retrieval.errors import InputError, LookalikeError, Stalled

STALL_SECONDS = 300.0
ACTOR_CPUS = 0.5
"""Of a CPU that one worker books, though it uses a whole one: Ray's own reading tasks want a whole
CPU, and where actors have booked them all the job would wait for ever in silence. It also lets the
workers of a lost node move to the others."""

_BLOCKS = 4096  # work items are spread over at most so many blocks of Ray Data


@dataclass(frozen=True)
class Cluster:
    """A cluster in reach, and how many workers it may run."""

    workers: int


@contextmanager
def cluster(address: str | None, workers: int | None) -> Iterator[Cluster]:
    """Reach the cluster (`address`, $RAY_ADDRESS, or one started here) and let go of it after.

    Nested calls share the one that is there.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if ray.is_initialized():
        yield Cluster(workers or _cpus())
        return
    wanted = address or os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"address": wanted or "local", "log_to_driver": False}
    options["runtime_env"] = {"worker_process_setup_hook": _our_packages_first}
    options["logging_level"] = "ERROR"
    if not wanted:
        options |= {"include_dashboard": False, "_temp_dir": _short_folder()}
    _pickle_by_value()
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise InputError(
            f"--ray-address {wanted or 'local'}: Ray cannot be reached or started ({error})"
        ) from error
    try:
        yield Cluster(workers or _cpus())
    finally:
        ray.shutdown()


def _cpus() -> int:
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def _short_folder() -> str:
    """Give a folder for Ray's sockets, whose paths may not be longer than 107 bytes."""
    folder = os.path.join(tempfile.gettempdir(), f"lookalike-{os.getuid()}")
    return folder if len(folder) < 40 else f"/tmp/lookalike-{os.getuid()}"  # noqa: S108


def _our_packages_first() -> None:
    """Let `jobs` and `retrieval` mean ours in a worker.

    Ray puts the folder a job was started in before everything else, and a folder `jobs/` of the
    user's own there would be taken for ours.
    """

    def shadows(entry: str) -> bool:
        named = any(os.path.isdir(os.path.join(entry, name)) for name in ("jobs", "retrieval"))
        return named and not os.path.isfile(os.path.join(entry, "retrieval", "tables.py"))

    sys.path[:] = sorted(sys.path, key=shadows)


def _pickle_by_value() -> None:
    """Send the hook itself to workers, which cannot import it before it has run."""
    _our_packages_first.__module__ = "__main__"


class _Worker:
    """A Ray Data actor: makes its work once, then does item after item."""

    def __init__(self, make: Callable[[], Callable[[Any], Any]]) -> None:
        self._work = make()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        import pickle

        return {"answer": [pickle.dumps(self._work(item)) for item in batch["item"]]}


def stream(
    where: Cluster, make: Callable[[], Callable[[Any], Any]], items: list[Any]
) -> Iterator[Any]:
    """Do items on a pool of actors through Ray Data; answers come as they are ready, in any order.

    `make` is called once in each actor and gives the function that does one item. An actor that
    dies is replaced and its item done again, so the function must be idempotent.
    """
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    DataContext.get_current().enable_progress_bars = False
    size = max(1, min(where.workers, len(items)))
    dataset = ray.data.from_items(
        [{"item": item} for item in items], override_num_blocks=min(len(items), _BLOCKS)
    ).map_batches(
        _Worker,
        fn_constructor_args=(make,),
        batch_size=1,
        compute=ActorPoolStrategy(size=size),
        num_cpus=ACTOR_CPUS,
    )
    yield from _watched(_answers(dataset))


def _answers(dataset: Any) -> Iterator[Any]:
    import pickle

    for batch in dataset.iter_batches(batch_size=None, prefetch_batches=0, batch_format="numpy"):
        for answer in batch["answer"]:
            yield pickle.loads(answer)  # noqa: S301 - our own workers made it, a moment ago


def tasks(where: Cluster, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """Do items as Ray tasks, as many at once as there are workers; answers in any order."""
    yield from _watched(_tasks(where, function, items))


def _tasks(where: Cluster, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    import ray

    remote = ray.remote(num_cpus=1, max_retries=3)(function)
    running: list[Any] = []
    for item in items:
        running.append(remote.remote(item))
        if len(running) >= where.workers:
            ready, running = ray.wait(running, num_returns=1)
            yield ray.get(ready[0])
    while running:
        ready, running = ray.wait(running, num_returns=1)
        yield ray.get(ready[0])


def _watched(answers: Iterator[Any]) -> Iterator[Any]:
    """Pass answers on, and refuse to wait longer than `STALL_SECONDS` for the next one."""
    passed: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=64)

    def pump() -> None:
        try:
            for answer in answers:
                passed.put(("answer", answer))
            passed.put(("end", None))
        except BaseException as error:  # noqa: BLE001 - handed to the reader below
            passed.put(("error", error))

    threading.Thread(target=pump, daemon=True).start()
    while True:
        try:
            kind, value = passed.get(timeout=STALL_SECONDS)
        except queue.Empty:
            raise Stalled(
                f"nothing was finished for {STALL_SECONDS:.0f} s: the workers wait for CPUs or an "
                "input that does not answer; what is finished is kept, run the same command again"
            ) from None
        if kind == "end":
            return
        if kind == "error":
            raise _cause(value)
        yield value


def _cause(error: BaseException) -> BaseException:
    """Give the refusal that a worker raised, without Ray's wrapping, if it was one of ours."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, LookalikeError):
            # Ray mixes its own class in, whose text is a traceback
            inner = getattr(seen, "cause", None)
            return inner if isinstance(inner, LookalikeError) else seen
        seen = getattr(seen, "cause", None) or seen.__cause__
    return error
