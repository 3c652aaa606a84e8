"""Data-parallel training: several processes train one network, each on a part of each batch.

Gradients are averaged through torch.distributed; with one process every operation is a no-op. Each
process holds the same network and draws the same batches, so nothing else is exchanged.
"""

from __future__ import annotations

import torch
from torch import Tensor, distributed


class ProcessGroup:
    """The torch.distributed group of this training, or this process alone if there is none."""

    def __init__(self) -> None:
        grouped = distributed.is_available() and distributed.is_initialized()
        self.rank = distributed.get_rank() if grouped else 0
        self.count = distributed.get_world_size() if grouped else 1

    def local_part(self, batch: Tensor) -> Tensor:
        """Return the (m,) photo positions of a batch that this process trains on, at least one."""
        shard = batch[self.rank :: self.count]
        return shard if len(shard) else batch[:1]

    def average_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Average the gradients over the processes."""
        if self.count == 1:
            return
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    distributed.all_reduce(parameter.grad)
                    parameter.grad /= self.count

    def mean(self, total: Tensor, count: int) -> float:
        """Return the sum of all processes' totals, () float64, divided by a count."""
        if self.count > 1:
            distributed.all_reduce(total)
        return float(total) / count
