"""Batches of every kind are counted, cut and moved by one set of rules."""

from __future__ import annotations

import collections
import dataclasses
import enum
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_sequence, unpack_sequence

import rightbatch as rb
from rightbatch.core.trees import (
    even_pieces,
    example_count,
    leaves,
    map_leaves,
    map_tensors,
    select_examples,
    slice_batch,
    to_device,
)


@dataclasses.dataclass(frozen=True)
class Example:
    x: Any
    y: Any
    made: int = dataclasses.field(default=0, init=False)


class Encoding(collections.UserDict[str, Any]):  # as transformers.BatchEncoding
    """A mapping that is made from a dict."""


class Named(collections.namedtuple("Named", "x y")):
    """A subclass of a namedtuple."""


class Rows(list[Any]):
    """A list of a class of its own."""


x, y = torch.arange(10.0).view(5, 2), torch.arange(5)
ragged = [torch.full((n + 1,), float(n)) for n in range(5)]
images = [torch.full((3, 4, n), float(n)) for n in range(1, 6)]
boxes = [{"boxes": torch.zeros(n, 4)} for n in range(5)]
ids, pairs = [[n] * (1 + n % 3) for n in range(5)], [[n, n] for n in range(5)]
texts = ["a", "b", "c", None, "e"]
two = torch.tensor(2.0)


def packed(part: slice) -> PackedSequence:
    return pack_sequence(ragged[part], enforce_sorted=False)


def jagged(part: slice) -> torch.Tensor:
    return torch.nested.as_nested_tensor(ragged[part], layout=torch.jagged)


# What each kind of batch holds of the examples in a slice; all five: the batch itself.
KINDS: dict[str, Callable[[slice], Any]] = {
    "dict": lambda s: {"x": x[s], "y": y[s], "scale": two, "name": "alpha"},
    "list": lambda s: [x[s], (y[s], texts[s])],
    "namedtuple": lambda s: Named(x[s], y[s]),
    "ordered": lambda s: collections.OrderedDict(x=x[s], y=y[s]),
    "mapping": lambda s: Encoding({"x": x[s], "y": y[s]}),
    "read only": lambda s: types.MappingProxyType({"x": x[s], "y": y[s]}),
    "dataclass": lambda s: Example(x[s], y[s]),
    "nested": lambda s: {"x": x[s], "more": Example(Encoding(y=y[s]), None)},
    "arrays": lambda s: (x[s], np.arange(5)[s], np.float32(2)),
    "lists of ids": lambda s: {"x": x[s], "ids": ids[s]},
    "lists of one length": lambda s: {"x": x[s], "ids": pairs[s]},
    "images": lambda s: (x[s], images[s], boxes[s]),
    "images alone": lambda s: (images[s], boxes[s]),
    "texts": lambda s: (texts[s], [1, 2, 3, 4, 5][s]),
    "two views": lambda s: ([x[s], 2 * x[s]], y[s]),
    "list of a class": lambda s: {"x": x[s], "rows": Rows(ragged[s])},
    "packed": lambda s: (x[s], packed(s)),
    "jagged": lambda s: (x[s], jagged(s)),
    "sparse": lambda s: (x[s], torch.eye(5)[s].to_sparse()),
    "shared": lambda s: (x[s], {"of": Kind.TEXT, "at": Path("a"), "by": len}),
}


def plain(batch: Any) -> list[Any]:
    """Its leaves, as Python's own."""

    def opened(leaf: Any) -> Any:
        if isinstance(leaf, PackedSequence):
            return unpack_sequence(leaf)
        if not isinstance(leaf, torch.Tensor):
            return leaf
        return list(leaf.unbind()) if leaf.is_nested else leaf.to_dense()

    unpacked = map_leaves(opened, batch)
    return [
        part.tolist() if hasattr(part, "tolist") else part for part in leaves(unpacked)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_each_piece_holds_its_own_examples(kind: str) -> None:
    make = KINDS[kind]
    batch = make(slice(None))
    assert example_count(batch) == 5
    for start, stop in [(0, 2), (2, 4), (4, 5), (0, 5)]:
        piece, right = slice_batch(batch, start, stop, 5), make(slice(start, stop))
        assert type(piece) is type(batch)
        assert plain(piece) == plain(right)
        assert example_count(piece, stop - start) == stop - start


@pytest.mark.parametrize("kind", KINDS)
def test_every_example_twice(kind: str) -> None:
    batch = KINDS[kind](slice(None))
    twice = select_examples(batch, [n for n in range(5) for _ in range(2)], 5)
    assert example_count(twice, 10) == 10
    for n in range(5):
        first = plain(slice_batch(twice, 2 * n, 2 * n + 1, 10))
        assert first == plain(slice_batch(twice, 2 * n + 1, 2 * n + 2, 10))
        assert first == plain(slice_batch(batch, n, n + 1, 5))


def test_a_batch_of_two_fields_and_two_examples() -> None:
    """Fields, as default_collate makes them: not one entry for each example."""
    first = slice_batch([x[:2], y[:2]], 0, 1, 2)
    assert plain(first) == plain([x[:1], y[:1]])


class Kind(enum.Enum):
    TEXT = "text"


class Table:
    """An object with an entry for each example, that we know nothing of."""

    def __len__(self) -> int:
        return 5


@pytest.mark.parametrize(
    "batch",
    [
        {"x": x, "views": [x] * 5},  # five fields, or an entry for each example
        {"x": x, "table": Table()},
        {"x": x, "range": range(5)},
        {"x": x, "graph": types.SimpleNamespace(nodes=torch.zeros(9, 2))},
        {"x": x, "set": {"a", "b"}},
        {"x": x, "queue": collections.deque([1, 2, 3])},
        {"graph": object()},
        {"time first": torch.zeros(7, 5)},
        "alpha",
    ],
)
def test_what_cannot_be_told_is_refused(batch: Any) -> None:
    with pytest.raises(rb.JobError, match="cannot be split") as refused:
        slice_batch(batch, 0, 2, 5)
    assert "split=" in refused.value.fix


@pytest.mark.parametrize(
    ("batch", "expected", "seen"),
    [
        ((x, y[:3]), None, r"first axes \[3, 5\]"),
        ({"ids": pairs}, None, "without a tensor"),  # 5 lists of 2, or 2 of 5
        (object(), None, "object without a tensor"),
        ((x, torch.zeros(7, 5)), 5, r"5 examples, and first axes \[5, 7\]"),
        ((x, y), 4, r"4 examples, and first axes \[5\]"),
    ],
)
def test_counts_that_are_not_clear_are_refused(
    batch: Any, expected: int | None, seen: str
) -> None:
    with pytest.raises(rb.JobError, match=seen):
        example_count(batch, expected)


def test_a_list_of_tensors_may_be_of_examples_or_of_fields() -> None:
    assert example_count(images, 5) == 5
    assert slice_batch(images, 1, 3, 5) == images[1:3]
    with pytest.raises(rb.JobError, match="cannot be split"):
        slice_batch(ragged, 1, 3, 5)  # one of them has five entries
    assert slice_batch({"tokens": ragged}, 1, 3, 5) == {"tokens": ragged[1:3]}


def test_a_list_of_examples_is_counted_where_the_stream_says_so() -> None:
    examples = [(image, n) for n, image in enumerate(images)]
    assert example_count(examples, 5) == 5
    assert slice_batch(examples, 1, 3, 5) == examples[1:3]


def test_a_mapping_that_cannot_be_made_again_is_refused() -> None:
    class Odd(collections.UserDict[str, Any]):
        def __init__(self, first: int, second: int) -> None:
            super().__init__(x=x)

    with pytest.raises(rb.JobError, match="a Odd, which cannot be made again"):
        slice_batch(Odd(1, 2), 0, 2, 5)


def test_all_that_can_be_moved_is_moved() -> None:
    class Movable:
        def to(self, device: Any) -> str:
            return str(device)

    batch = {"x": x, "more": Example([y, Movable()], np.ones(2)), "packed": packed}
    moved = to_device(batch, "meta")
    assert moved["x"].device.type == moved["more"].x[0].device.type == "meta"
    assert moved["more"].x[1] == "meta"
    assert moved["more"].y is batch["more"].y
    assert to_device(packed(slice(None)), "cpu").data.device.type == "cpu"


def test_tensors_are_replaced_and_nothing_else() -> None:
    assert plain(map_tensors(torch.sum, {"x": x, "name": "a"})) == [45.0, "a"]


def test_pieces_are_even() -> None:
    for count in range(1, 30):
        for most in range(1, 32):
            sizes = [b - a for a, b in even_pieces(count, most)]
            assert sum(sizes) == count
            assert max(sizes) <= most
            assert max(sizes) - min(sizes) <= 1
            assert len(sizes) == -(-count // most)
