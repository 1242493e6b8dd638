"""Cross entropy of every row of a table of similarities, which is never held whole.

The table ``S = scale * queries @ keys.T`` is made in square tiles, twice: once for the
sums of its rows and columns, once for the gradient. Memory is linear in the batch.

A row's positive is kept out of its sum: with ``N_i = log sum_{j != i} exp(S_ij)`` the
loss of row i is ``softplus(N_i - S_ii)`` and the gradient at its positive
``-sigmoid(N_i - S_ii)``. Adding the positive and taking it away again, as cross entropy
does, leaves noise where pairs are well told apart: in float32, at a scale of 44 and a
similarity of .9 to the positive, the gradient is 35 % off. [measured]
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from rightbatch.core.errors import SettingError
from rightbatch.coupling.features import no_second_derivative, not_finite
from rightbatch.coupling.gather import Shards

SIDE = 512  # of a tile: as fast from 256 to 2048 [measured]
# Of the logarithm of the largest number: the largest exponent; what is left is for sums
# over a batch, e^26 of them in float32. [derived]
HEADROOM = 0.7


@dataclass(frozen=True, slots=True)
class Band:
    """Row ``start + k`` belongs to column ``column + k``, up to row ``stop``."""

    start: int
    stop: int
    column: int

    @property
    def columns(self) -> slice:
        """The columns that its rows belong to."""
        return slice(self.column, self.column + self.stop - self.start)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Which entries of the table are what.

    Attributes:
        positive: The column of every row, in the order of rows.
        left_out: Entries that are neither positive nor negative.
        columns: Whether the cross entropy of columns is taken too, of those that have a
            positive.
        terms: Rows and columns over all ranks, which the loss is the mean of.
    """

    positive: tuple[Band, ...]
    left_out: tuple[Band, ...] = ()
    columns: bool = False
    terms: int


def tiled_cross_entropy(
    queries: Float[Tensor, "rows dim"],
    keys: Float[Tensor, "columns dim"],
    scale: Float[Tensor, ""],
    pairs: Pairs,
    shards: Shards,
) -> Float[Tensor, ""]:
    """The mean cross entropy over all rows (and columns) of all ranks.

    Its gradient is this rank's part times the number of ranks.

    Args:
        queries: Of this rank.
        keys: Of all ranks.
        scale: Of their products.
        pairs: Which column is a row's own.
        shards: How the ranks talk.

    Raises:
        NotFiniteError: Features are not finite.
        SettingError: A second derivative is asked for.
    """
    return _TiledCrossEntropy.apply(queries, keys, scale, pairs, shards)


class Table:
    """The similarities, tile by tile, in one piece of memory."""

    def __init__(self, queries: Tensor, keys: Tensor, scale: Tensor) -> None:
        self.queries, self.keys, self.scale = queries, keys, scale

    def tiles(
        self, shift: float | Tensor = 0.0
    ) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
        """Rows, columns, scaled queries, and similarities less ``shift``."""
        memory = self.queries.new_empty(SIDE * SIDE)
        for top in range(0, len(self.queries), SIDE):
            rows = slice(top, min(top + SIDE, len(self.queries)))
            scaled = self.queries[rows] * self.scale
            for left in range(0, len(self.keys), SIDE):
                columns = slice(left, min(left + SIDE, len(self.keys)))
                shape = rows.stop - top, columns.stop - left
                tile = memory[: math.prod(shape)].view(shape)
                torch.mm(scaled, self.keys[columns].T, out=tile)
                yield (
                    rows,
                    columns,
                    scaled,
                    (tile.sub_(shift) if isinstance(shift, Tensor) or shift else tile),
                )

    def positives(self, bands: Sequence[Band]) -> Tensor:
        """The similarity of every row to its own column."""
        parts = [
            (self.queries[b.start : b.stop] * self.keys[b.columns]).sum(1)
            for b in bands
        ]
        return torch.cat(parts) * self.scale

    def log_sums(self, pairs: Pairs, shift: float) -> tuple[Tensor, Tensor]:
        """Logarithms of the sums of exponentials over negatives, by row and column."""
        rows = self.queries.new_zeros(len(self.queries))
        columns = self.queries.new_zeros(len(self.keys))
        for at, of, _, tile in self.tiles(shift):
            cleared(tile.exp_(), at, of, (*pairs.positive, *pairs.left_out), 0.0)
            rows[at] += tile.sum(1)
            if pairs.columns:
                columns[of] += tile.sum(0)
        return rows.log_().add_(shift), columns.log_().add_(shift)

    def log_sums_of_any_range(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """The same where exponentials of one shift do not hold them all."""
        rows = self.queries.new_full((len(self.queries),), -torch.inf)
        columns = self.queries.new_full((len(self.keys),), -torch.inf)
        for at, of, _, tile in self.tiles():
            cleared(tile, at, of, (*pairs.positive, *pairs.left_out), -torch.inf)
            rows[at] = torch.logaddexp(rows[at], tile.logsumexp(1))
            if pairs.columns:
                columns[of] = torch.logaddexp(columns[of], tile.logsumexp(0))
        return rows, columns


def cleared(
    tile: Tensor, rows: slice, columns: slice, bands: Sequence[Band], value: float
) -> None:
    """Fill those entries of a tile that lie on a band."""
    for band in bands:
        offset = band.column - band.start
        first = max(band.start, rows.start, columns.start - offset)
        last = min(band.stop, rows.stop, columns.stop - offset)
        if first < last:
            across = slice(
                first + offset - columns.start, last + offset - columns.start
            )
            inside = tile[first - rows.start : last - rows.start, across]
            inside.diagonal().fill_(value)


class _TiledCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        queries: Tensor,
        keys: Tensor,
        scale: Tensor,
        pairs: Pairs,
        shards: Shards,
    ) -> Tensor:
        table = Table(queries, keys, scale)
        with torch.autocast(queries.device.type, enabled=False):
            shift = _shift(table, shards)
            positives = table.positives(pairs.positive)
            placed = keys.new_full((len(keys),), -torch.inf)
            if pairs.columns:
                for band in pairs.positive:
                    placed[band.columns] = positives[band.start : band.stop]
                placed = shards.log_total(placed)
            paired = placed > -torch.inf

            rows, columns = table.log_sums(pairs, shift)
            columns = shards.log_total(columns) if pairs.columns else columns
            lowest = torch.cat([rows, columns[paired]]).min()
            limits = torch.finfo(queries.dtype)
            # Below, a sum may lack terms that its dtype would show.
            least = shift + math.log(limits.tiny / limits.eps**2)
            one_shift = shards.largest(-lowest)[0] <= -least
            if not one_shift:
                rows, columns = table.log_sums_of_any_range(pairs)
                columns = shards.log_total(columns) if pairs.columns else columns

            losses, pull = -logsigmoid(positives - rows), (rows - positives).sigmoid()
            if pairs.columns:
                own = torch.cat([columns[band.columns] for band in pairs.positive])
                losses = losses - logsigmoid(positives - own)
                pull += (own - positives).sigmoid()
            to_row = torch.logaddexp(rows, positives)
            to_column = torch.logaddexp(columns, placed).where(paired, torch.inf)
            ctx.save_for_backward(queries, keys, scale, to_row, to_column, pull)
            ctx.plan = pairs, shards, shift, one_shift
            return shards.total(losses.sum()) / pairs.terms

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise no_second_derivative()
        queries, keys, scale, to_row, to_column, pull = ctx.saved_tensors
        pairs, shards, shift, one_shift = ctx.plan
        table = Table(queries, keys, scale)
        with torch.autocast(queries.device.type, enabled=False):
            to_queries, to_keys = torch.zeros_like(queries), torch.zeros_like(keys)
            by_row, by_column = (shift - to_row).exp_(), (shift - to_column).exp_()
            for at, of, scaled, tile in table.tiles(shift if one_shift else 0.0):
                if not one_shift:
                    by_rows = (tile - to_row[at, None]).exp_()
                    tile.sub_(to_column[of]).exp_().add_(by_rows)
                elif pairs.columns:
                    tile.exp_().mul_(by_row[at, None] + by_column[of])
                else:
                    tile.exp_().mul_(by_row[at, None])
                cleared(tile, at, of, (*pairs.positive, *pairs.left_out), 0.0)
                to_queries[at].addmm_(tile, keys[of])
                to_keys[of].addmm_(tile.T, scaled)
            for band in pairs.positive:
                at, of = slice(band.start, band.stop), band.columns
                to_queries[at] -= pull[at, None] * keys[of]
                to_keys[of] -= (pull[at, None] * scale) * queries[at]
            factor = gradients[0] * len(shards.counts) / pairs.terms
            to_scale = (to_queries * queries).sum() * factor
            to_queries.mul_(scale * factor)
            return to_queries, to_keys.mul_(factor), to_scale, None, None


def _shift(table: Table, shards: Shards) -> float:
    """What similarities are lessened by, so that no exponential is infinite.

    By the Cauchy-Schwarz bound on all of them; nothing, up to 62 in float32.

    Raises:
        NotFiniteError: Features or scale are not finite.
        SettingError: The scale is negative.
    """
    norms = [rows.detach().norm(dim=1).max() for rows in (table.queries, table.keys)]
    scale = table.scale.detach()
    query, key, largest, lowest = shards.largest(*norms, scale, -scale)
    seen = f"largest norms {query:.3g} and {key:.3g}, scale {largest:.3g}"
    if not math.isfinite(query * key * largest):
        raise not_finite(seen)
    if lowest > 0:
        raise SettingError("the scale must not be negative", seen=seen)
    most = math.log(torch.finfo(table.queries.dtype).max)
    return max(0.0, query * key * largest - HEADROOM * most)
