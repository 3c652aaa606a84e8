"""Propose candidates by lossy codes: a search of decoded vectors for more matches than are needed.

    work/proposals/…                            the files of that search (`shard_search.py`)
    work/proposed/PROBING/SHARD-BLOCK           those of its candidates in a shard that are among
                                                the best of all shards

Only the latter are scored by the vectors (`rescore.py`), so the result does not depend on how the
gallery was cut into shards.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retrieval.core.schemas import WORK_FOLDER
from retrieval.index.kmeans import assignment_metric
from retrieval.index.probing import Probing
from retrieval.index.quantized_codes import CANDIDATES_PER_MATCH
from retrieval.search.candidates import Candidates, top_candidates
from retrieval.search.candidates_file import read_candidates, write_candidates
from retrieval.search.shard_search import SearchTask, candidates_paths, read_block_candidates

PROPOSALS = WORK_FOLDER + "proposals"
"""Folder of the search that proposes candidates."""


def proposal_task(task: SearchTask) -> SearchTask:
    """Return the search of decoded vectors that proposes the candidates of a search."""
    return dataclasses.replace(
        task, output=task.output.child(PROPOSALS), metric=assignment_metric(task.metric),
        top_k=task.top_k * CANDIDATES_PER_MATCH, looks=(), min_key=-np.inf,
    )  # fmt: skip


def proposed_path(probing: Probing, shard: int, number: int) -> str:
    """Return the path of the candidates of a shard for a block that are scored exactly."""
    return f"{WORK_FOLDER}proposed/{probing.name}/{shard:05d}-{number:05d}"


def merge_proposals(task: SearchTask, number: int) -> int:
    """Write the best proposals of all shards for a block, per shard; return the block's number."""
    paths = [proposed_path(task.probing, shard, number) for shard in task.shards]
    if task.output.exists(paths[-1]):  # written last
        return number
    proposing = proposal_task(task)
    best, _ = top_candidates(read_block_candidates(proposing, number), proposing.top_k)
    for shard, path in zip(task.shards, paths, strict=True):
        parts = [
            read_candidates(proposing.output, source)
            for source in candidates_paths(proposing, shard, number)
        ]
        images = pa.concat_tables([part.read_images() for part in parts])
        in_shard = best.pairs.filter(pc.is_in(best.pairs["row"], images["row"].combine_chunks()))
        write_candidates(task.output, path, Candidates(in_shard, images.combine_chunks))
    return number
