"""Workers that train one identity together: each computes its share of the rows of a step, and gradients are added."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

from actors.movie_characters.diffusion import copy_all

BUCKET = 1 << 24
"""Numbers that travel in one message, which is copied once."""


@dataclass(frozen=True)
class Peers:
    """The workers of one process group of torch; by default a worker alone, without one."""

    rank: int = 0
    """Number of this worker, from 0."""
    count: int = 1
    """Workers in all."""
    sharded: bool = False
    """Whether the network is divided over them (sharding.py), so that all make the same passes together."""

    def share(self, rows: int) -> range:
        """The numbers of this worker's rows, of those of one step."""
        return range(rows * self.rank // self.count, rows * (self.rank + 1) // self.count)

    def pieces(self, rows: int, size: int) -> list[slice]:
        """Which rows of a step, in pieces of `size` rows, this worker computes in each of its passes.

        Where all make the same number of passes, the last ones of some have no rows.
        """
        shares = [Peers(rank, self.count).share(rows) for rank in range(self.count)]
        mine = shares[self.rank]
        found = [
            slice(max(mine.start, start), min(mine.stop, start + size))
            for start in range(mine.start - mine.start % size, mine.stop, size)
        ]
        most = max(-(-share.stop // size) - share.start // size for share in shares) if self.sharded else 0
        return found + [slice(mine.stop, mine.stop)] * (most - len(found))

    def agreed(self, value: Any) -> Any:
        """The first worker's value, where all must do the same; else this one's own."""
        return self.each(value)[0] if self.sharded else value

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors of one dtype by their sums over all workers."""
        for some in _buckets(tensors) if self.count > 1 else ():
            flat = torch.cat([one.detach().flatten() for one in some])
            self.reduce(flat)
            parts = flat.split([one.numel() for one in some])
            copy_all(some, [part.view_as(own) for part, own in zip(parts, some, strict=True)])

    def reduce(self, tensor: Tensor) -> None:
        """Replace one tensor by its sum over all workers."""
        distributed.all_reduce(tensor)

    def each(self, value: Any) -> list[Any]:
        """The values of all workers, by rank. Returns once all have called it."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        distributed.all_gather_object(found, value)
        return found


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    some: list[Tensor] = []
    size = 0
    for one in tensors:
        if some and size + one.numel() > BUCKET:
            yield some
            some, size = [], 0
        some.append(one)
        size += one.numel()
    if some:
        yield some
