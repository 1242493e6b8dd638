"""A batch in chunks for one encoder: of so many examples, or of so many tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from rightbatch.core.errors import SettingError
from rightbatch.core.trees import (
    even_pieces,
    example_count,
    map_tensors,
    select_examples,
    slice_batch,
    tensors,
)
from rightbatch.core.whole_number import whole_number


@dataclass(frozen=True, slots=True)
class Chunk:
    """Examples that are encoded at once.

    Attributes:
        batch: What the encoder gets.
        indices: Where they stand in the whole batch.
    """

    batch: Any
    indices: list[int]


def chunks_of_examples(batch: Any, micro_batch: int) -> list[Chunk]:
    """Chunks of at most so many examples, in the batch's order.

    Example:
        >>> import torch
        >>> [len(chunk.indices) for chunk in chunks_of_examples(torch.zeros(10, 2), 4)]
        [4, 3, 3]
    """
    count = example_count(batch)
    pieces = even_pieces(count, whole_number(micro_batch, "micro_batch"))
    return [
        Chunk(slice_batch(batch, start, stop, count), list(range(start, stop)))
        for start, stop in pieces
    ]


def chunks_of_tokens(batch: Any, lengths: Sequence[int], tokens: int) -> list[Chunk]:
    """Chunks of at most so many tokens, padding counted, the longest examples first.

    Each is cut to its longest example. One that is longer than ``tokens`` is a chunk
    of its own.

    Args:
        batch: Its tensors have examples first, then positions, padded at the end.
        lengths: Tokens of each example.
        tokens: Of a chunk: its examples times its longest.

    Raises:
        SettingError: Lengths and batch do not fit, or its tensors differ in the second
            axis, so that it cannot be told which is padded.

    Example:
        >>> import torch
        >>> chunks = chunks_of_tokens(torch.zeros(4, 8), [2, 8, 3, 2], 8)
        >>> [(chunk.indices, tuple(chunk.batch.shape)) for chunk in chunks]
        [([1], (1, 8)), ([2, 0], (2, 3)), ([3], (1, 2))]
    """
    count, budget = example_count(batch), whole_number(tokens, "tokens")
    sizes = [whole_number(int(length), "lengths") for length in lengths]
    widths = {t.shape[1] for t in tensors(batch) if _is_padded(t, count)}
    if len(sizes) != count or len(widths) != 1 or max(sizes) > max(widths):
        raise SettingError(
            "lengths and batch do not fit",
            seen=f"{len(sizes)} lengths up to {max(sizes, default=0)}, {count} "
            f"examples, second axes {sorted(widths)}",
            why="padding is cut off the end of the second axis",
            fix="a length for each example; tensors padded to one width",
        )
    groups: list[list[int]] = []
    for index in sorted(range(count), key=lambda i: -sizes[i]):
        if not groups or (len(groups[-1]) + 1) * sizes[groups[-1][0]] > budget:
            groups.append([])
        groups[-1].append(index)
    chunks = []
    for group in groups:
        # Before examples are taken: what they share may be as many by chance.
        shorter = map_tensors(
            lambda t, to=sizes[group[0]]: t[:, :to] if _is_padded(t, count) else t,
            batch,
        )
        chunks.append(Chunk(select_examples(shorter, group, count), group))
    return chunks


def _is_padded(tensor: Tensor, count: int) -> bool:
    return tensor.dim() > 1 and len(tensor) == count
