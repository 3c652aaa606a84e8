"""The only file that knows how Ray is reached, sized, fed and shut down.

What runs on it are plain functions of the library. Work items are small (chunk numbers, shard
numbers), results are small, and both are streamed.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from retrieval.errors import InputError, LookalikeError, Stalled

STALL_SECONDS = 300.0
ACTOR_CPUS = 0.5
"""Of a CPU that one worker books, though it uses a whole one: Ray's own reading tasks want a whole
CPU, and where actors have booked them all the job would wait for ever in silence. It also lets the
workers of a lost node move to the others."""

_BLOCKS = 4096  # work items are spread over at most so many blocks of Ray Data


class Cluster:
    """A cluster that is reached when the first work is given to it.

    So a job that finds everything done never starts Ray.
    """

    def __init__(self, address: str | None, workers: int | None) -> None:
        self._address = address or os.environ.get("RAY_ADDRESS")
        self._asked = workers
        self._connected = False

    @property
    def workers(self) -> int:
        """Count the workers that may run at once; reaches the cluster."""
        self.connect()
        return self._asked or _cpus()

    def connect(self) -> None:
        """Reach the cluster, or start one here.

        To be called by the main thread: Linux ends what Ray starts here with the thread that
        started it.
        """
        import ray

        if not ray.is_initialized():  # a notebook or a test may have its own
            _connect(self._address)
            self._connected = True

    def close(self) -> None:
        """Let go of the cluster; one that was started here ends."""
        if self._connected:
            import ray

            ray.shutdown()
            self._connected = False


@contextmanager
def cluster(address: str | None, workers: int | None) -> Iterator[Cluster]:
    """Give the cluster at `address` ($RAY_ADDRESS, or one started here) and let go of it after."""
    where = Cluster(address, workers)
    try:
        yield where
    finally:
        where.close()


def _connect(address: str | None) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    options: dict[str, Any] = {"address": address or "local", "log_to_driver": False}
    options["runtime_env"] = {"worker_process_setup_hook": _our_packages_first}
    options["logging_level"] = "ERROR"
    if not address:
        options |= {"include_dashboard": False, "_temp_dir": _short_folder()}
    _pickle_by_value()
    try:
        with _quiet():
            ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise InputError(
            f"--ray-address {address or 'local'}: Ray cannot be reached or started ({error})"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what Ray's native code says at start off a person's screen; errors are raised anyway."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


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

    def __init__(self, make: Callable[[], Callable[[int], dict[str, Any]]]) -> None:
        self._work = make()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"answer": [json.dumps(self._work(item)) for item in batch["item"].tolist()]}


def stream(
    where: Cluster, make: Callable[[], Callable[[int], dict[str, Any]]], items: list[int]
) -> Iterator[dict[str, Any]]:
    """Do items on a pool of actors through Ray Data; answers come as they are ready, in any order.

    `make` is called once in each actor and gives the function that does one item and answers with
    plain values. An actor that dies is replaced and its item done again, so the function must be
    idempotent.
    """
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    where.connect()
    context = DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
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
    for batch in dataset.iter_batches(batch_size=None, prefetch_batches=0, batch_format="numpy"):
        for answer in batch["answer"]:
            yield json.loads(answer)


def tasks(where: Cluster, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """Do items as Ray tasks, as many at once as there are workers; answers in any order.

    Answers should be small: what is large belongs into a file.
    """
    where.connect()
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
