"""Work on the cluster: a pool of actors fed through Ray Data, and single tasks; both watched.

What runs are plain functions of the library. Work items are small (chunk numbers, shard numbers),
answers are small, and both are streamed.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from jobs.cluster import Cluster
from retrieval import errors
from retrieval.errors import LookalikeError, Stalled

STALL_SECONDS = 300.0
ACTOR_CPUS = 0.5
"""Of a CPU that one worker books, though it uses a whole one: Ray's own reading tasks want a whole
CPU, and where actors have booked them all the job would wait for ever in silence. It also lets the
workers of a lost node move to the others."""

_BLOCKS = 4096  # work items are spread over at most so many blocks of Ray Data


Make = Callable[[Any], Callable[[int], dict[str, Any]]]


class _Worker:
    """A Ray Data actor: makes its work once, then does item after item.

    A refusal is an answer: of what an actor raises Ray Data passes the text on, but not the cause.
    """

    def __init__(self, make: Make, shared: Any) -> None:
        import ray

        try:
            self._work = make(ray.get(shared))
        except LookalikeError as refusal:
            self._work = _refusing(refusal)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"answer": [json.dumps(self._answer(item)) for item in batch["item"].tolist()]}

    def _answer(self, item: int) -> dict[str, Any]:
        try:
            return {"done": self._work(item)}
        except LookalikeError as refusal:
            return {"refused": type(refusal).__name__, "said": str(refusal)}


def _refusing(refusal: LookalikeError) -> Callable[[int], dict[str, Any]]:
    """Refuse each item, as the making of the work did."""

    def refuse(_: int) -> dict[str, Any]:
        raise refusal

    return refuse


def stream(
    where: Cluster, make: Make, items: list[int], shared: Any, device: str
) -> Iterator[dict[str, Any]]:
    """Do items on a pool of actors through Ray Data; answers come as they are ready, in any order.

    `make` is called once in each actor with `shared`, which a machine holds once however many
    actors it has, and gives the function that does one item and answers with plain values. On the
    device cuda each actor has a GPU of its own. An actor that dies is replaced and its item done
    again, so the function must be idempotent.
    """
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    where.connect()
    context = DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    on_gpu = device == "cuda"
    most = where.gpus if on_gpu else len(items)  # an actor without a GPU would wait for ever
    size = max(1, min(where.asked or where.cpus, most, len(items)))
    dataset = ray.data.from_items(
        [{"item": item} for item in items], override_num_blocks=min(len(items), _BLOCKS)
    ).map_batches(
        _Worker,
        fn_constructor_args=(make, ray.put(shared)),
        batch_size=1,
        compute=ActorPoolStrategy(size=size),
        num_cpus=ACTOR_CPUS,
        num_gpus=1 if on_gpu else None,
    )
    yield from _watched(_answers(dataset))


def _answers(dataset: Any) -> Iterator[Any]:
    for batch in dataset.iter_batches(batch_size=None, prefetch_batches=0, batch_format="numpy"):
        for answer in map(json.loads, batch["answer"]):
            if "refused" in answer:
                raise getattr(errors, answer["refused"])(answer["said"])
            yield answer["done"]


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
