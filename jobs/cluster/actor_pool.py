"""Work on the cluster: a pool of actors fed through Ray Data, and watched.

What runs are plain functions of the library. Work items are small (chunk numbers), answers are
small, and both are streamed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

from jobs.cluster.failure_log import begin, book_of
from jobs.cluster.resources import Cluster
from jobs.cluster.stall_detector import PoolSigns, watched
from jobs.runtime.run_metadata import peak_memory
from retrieval.core import errors
from retrieval.core.errors import LookalikeError
from retrieval.embedding.attempt import Attempt

ACTOR_CPUS = 0.5
"""Of a CPU that one worker books, though it uses a whole one: Ray's own reading tasks want a whole
CPU, and where actors have booked them all the job would wait for ever in silence. It also lets the
workers of a lost node move to the others."""

_BLOCKS = 4096  # work items are spread over at most so many blocks of Ray Data


Work = Callable[[int, Attempt], dict[str, Any]]
Make = Callable[[Any], Work]
Called = Callable[[int], str]


class _Worker:
    """A Ray Data actor: makes its work once, then does item after item.

    A refusal is an answer: of what an actor raises Ray Data passes the text on, but not the cause.
    """

    def __init__(self, make: Make, shared: Any, book: Any, called: Called) -> None:
        import ray

        self._book, self._called = book, called
        try:
            self._work = make(ray.get(shared))
        except LookalikeError as refusal:
            self._work = _refusing(refusal)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"answer": [json.dumps(self._answer(item)) for item in batch["item"].tolist()]}

    def _answer(self, item: int) -> dict[str, Any]:
        try:
            attempt = begin(self._book, item, self._called(item))
            done = self._work(item, attempt)
        except LookalikeError as refusal:
            return {"refused": type(refusal).__name__, "said": str(refusal)}
        self._book.end.remote(item)
        return {"done": done, "peak": peak_memory()}


def _refusing(refusal: LookalikeError) -> Work:
    """Refuse each item, as the making of the work did."""

    def refuse(_: int, __: Attempt) -> dict[str, Any]:
        raise refusal

    return refuse


def stream(
    where: Cluster,
    make: Make,
    items: list[int],
    shared: Any,
    device: str,
    called: Called = "item {}".format,
) -> Iterator[dict[str, Any]]:
    """Do items on a pool of actors through Ray Data; answers come as they are ready, in any order.

    `make` is called once in each actor with `shared`, which a machine holds once however many
    actors it has, and gives the function that does one item and answers with plain values. On the
    device cuda each actor has a GPU, or its share of one. An actor that dies is replaced and its
    item done again, so the function must be idempotent; it is told which attempt this is. `called`
    gives an item's name for a person.
    """
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    gpus = where.gpu_share if device == "cuda" else 0
    context = DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    where.require(ACTOR_CPUS, gpus)
    most = len(items)
    if gpus and not where.may_grow:  # an actor without a GPU would wait for ever
        most = min(most, int(where.gpus / gpus))
    size = max(1, min(where.asked or where.cpus, most))
    book = book_of(where)
    dataset = ray.data.from_items(
        [{"item": item} for item in items], override_num_blocks=min(len(items), _BLOCKS)
    ).map_batches(
        _Worker,
        fn_constructor_args=(make, ray.put(shared), book, called),
        batch_size=1,
        compute=ActorPoolStrategy(size=size),
        num_cpus=ACTOR_CPUS,
        num_gpus=gpus or None,
    )
    asked = f"{size} workers of {ACTOR_CPUS:g} CPU" + (f" and {gpus:g} GPU" if gpus else "")
    yield from watched(answers(where, dataset), PoolSigns(where, book, called, len(items), asked))


def answers(where: Cluster, dataset: Any) -> Iterator[Any]:
    """Read the answers of a data set as they come; a refusal among them ends it."""
    for batch in dataset.iter_batches(batch_size=None, prefetch_batches=0, batch_format="numpy"):
        for answer in map(json.loads, batch["answer"]):
            if "refused" in answer:
                raise getattr(errors, answer["refused"])(answer["said"])
            where.peak = max(where.peak, answer["peak"])
            yield answer["done"]
