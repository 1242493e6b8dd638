"""The features of all ranks, with the gradient that DDP's averaging then leaves right.

Each rank takes its own queries against the keys of all, and gives its part of the
gradient of the one loss over the whole batch, times the number of ranks: DDP averages,
so the mean of these is their sum. A plain ``all_gather`` passes no gradient to the
other ranks' features: what DDP then averages is too small by the number of ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from rightbatch.core.errors import SettingError

Group = dist.ProcessGroup | Literal[False] | None


@dataclass(frozen=True, slots=True)
class Shards:
    """Where the rows of this rank lie among those of all ranks.

    Attributes:
        counts: Rows of every rank.
        rank: This one, among them.
        group: Whose ranks they are; None: there is one.
    """

    counts: tuple[int, ...]
    rank: int = 0
    group: dist.ProcessGroup | None = None

    @property
    def starts(self) -> tuple[int, ...]:
        """The first row of every rank."""
        return tuple(sum(self.counts[:rank]) for rank in range(len(self.counts)))

    def every(self, tensor: Tensor) -> list[Tensor]:
        """Every rank's tensor of this shape. Collective."""
        if self.group is None:
            return [tensor]
        received = [torch.empty_like(tensor) for _ in self.counts]
        dist.all_gather(received, tensor.contiguous(), group=self.group)
        return received

    def largest(self, *values: Tensor) -> list[float]:
        """The largest of each number over the ranks; NaN counts as infinite."""
        stacked = torch.stack(values).nan_to_num(nan=torch.inf, posinf=torch.inf)
        return torch.stack(self.every(stacked)).amax(0).tolist()

    def total(self, tensor: Tensor) -> Tensor:
        """The sum over the ranks. Collective."""
        if self.group is None:
            return tensor
        summed = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed, group=self.group)
        return summed

    def log_total(self, tensor: Tensor) -> Tensor:
        """The logarithm of the sum of exponentials over the ranks. Collective."""
        return torch.stack(self.every(tensor)).logsumexp(0)

    def gather(self, rows: Float[Tensor, "own dim"]) -> Float[Tensor, "all dim"]:
        """The rows of all ranks, in their order; their gradient comes back summed."""
        if self.group is None:
            return rows
        return _Gathered.apply(rows, self)


class _Gathered(torch.autograd.Function):
    """Rows of all ranks; backward: the sum over ranks, of which each takes its own."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, shards: Shards) -> Tensor:  # type: ignore[override]
        ctx.shards = shards
        padded = rows.new_zeros(max(shards.counts), *rows.shape[1:])
        padded[: len(rows)] = rows  # backends want one size
        received = zip(shards.every(padded), shards.counts, strict=True)
        return torch.cat([every[:count] for every, count in received])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        shards = ctx.shards
        start = shards.starts[shards.rank]
        own = slice(start, start + shards.counts[shards.rank])
        return shards.total(gradients[0])[own], None


def shards_of(process_group: Group, *rows: Tensor) -> list[Shards]:
    """How the rows of several features lie over the ranks. Collective.

    Args:
        process_group: Whose ranks make one batch together; None: all, where torch's
            processes are joined; False: this rank's rows are the batch.
        rows: Features of this rank, examples first.

    Raises:
        SettingError: The ranks' features are not of one width, or there are none.
    """
    joined = dist.is_available() and dist.is_initialized()
    if process_group is False or not joined or dist.get_world_size(process_group) == 1:
        return [Shards((len(feature),)) for feature in rows]
    group = dist.group.WORLD if process_group is None else process_group
    sizes = [*map(len, rows), rows[0].shape[1]]
    own = torch.tensor(sizes, device=rows[0].device)
    received = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(received, own, group=group)
    *counts, widths = zip(*(one.tolist() for one in received), strict=True)
    if min(map(min, counts)) == 0:
        raise SettingError("a rank without examples", seen=f"{counts} by rank")
    if len(set(widths)) > 1:
        raise SettingError(
            "the ranks' features differ in width", seen=f"{list(widths)} by rank"
        )
    return [Shards(count, dist.get_rank(group), group) for count in counts]
