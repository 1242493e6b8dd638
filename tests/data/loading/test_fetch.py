"""Examples as the data set and the collate make them, and whose fault an error is."""

from typing import Any

import pytest
import torch
from torch.utils.data import Subset, TensorDataset, default_collate

import reference
import rightbatch as rb
from feeding import Numbers


def test_custom_collate_gets_the_examples_and_any_batch_is_allowed() -> None:
    stream = rb.BatchStream(["a", "bb", "ccc"], 2, collate_fn="-".join)
    assert sorted("-".join(stream).split("-")) == ["a", "bb", "ccc"]


def test_a_collate_that_fails_names_its_examples() -> None:
    stream = rb.BatchStream(Numbers(8), 4, order="sequential", collate_fn=len)
    assert next(iter(stream)) == 4

    def collate(examples: list[Any]) -> Any:
        raise KeyError("shape")

    broken = rb.BatchStream(Numbers(8), 4, order="sequential", collate_fn=collate)
    with pytest.raises(KeyError, match="shape") as caught:
        next(iter(broken))
    assert "collating examples 0, 1, 2, 3" in caught.value.__notes__[0]


class Broken(Numbers):
    """One example cannot be read."""

    def __getitem__(self, index: int) -> Any:
        if index == 13:
            raise OSError("bad block")
        return index


@pytest.mark.parametrize("workers", [0, 2])
def test_an_example_that_cannot_be_read_is_named(workers: int) -> None:
    stream = rb.BatchStream(Broken(30), 5, num_workers=workers)
    seen: list[int] = []
    with pytest.raises(OSError, match="bad block") as caught:
        for index in stream:
            seen += index.tolist()
    text = str(caught.value) + "".join(getattr(caught.value, "__notes__", []))
    assert "example 13" in text
    place = reference.epochs(30, 0, 1).index(13)
    assert stream.position == place // 5 * 5
    stream.skip(1)  # leave the bad batch out
    for index in stream:
        seen += index.tolist()
    assert len(seen) == 25
    stream.close()  # now: pytest's traceback keeps it until it is collected


def test_tensors_are_indexed_at_once_as_the_collate_would_put_them() -> None:
    rows = [torch.arange(24.0).view(6, 2, 2), torch.arange(6, dtype=torch.int8)]
    rows += [torch.rand(6, dtype=torch.float64), torch.zeros(2, 6, dtype=torch.bool).T]
    data = TensorDataset(*rows)
    (batch,) = rb.BatchStream(data, 6, order="sequential")
    expected = default_collate([data[i] for i in range(6)])
    assert type(batch) is type(expected)
    for ours, theirs in zip(batch, expected, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
        assert ours.data_ptr() not in [row.data_ptr() for row in rows]  # a copy
    sparse = TensorDataset(torch.eye(6).to_sparse(), torch.arange(6))
    stream = rb.BatchStream(sparse, 6, collate_fn=list)
    assert len(next(iter(stream))) == 6


class Fails(Numbers):
    """One of its files is missing; read many at a time it does not say which."""

    def __getitem__(self, index: int) -> Any:
        if index == 14:
            raise KeyError("no such file")
        return index

    def __getitems__(self, indices: list[int]) -> Any:
        return [self[index] for index in indices]


@pytest.mark.parametrize("seeded", [True, False])
@pytest.mark.parametrize("whole", [True, False])
def test_a_failing_example_is_named_whichever_way_it_is_read(
    whole: bool, seeded: bool
) -> None:
    data: Any = Fails(24)
    data = data if whole else Subset(data, list(range(24)))
    stream = rb.BatchStream(data, 6, order="sequential", seeded=seeded)
    with pytest.raises(KeyError, match="no such file") as caught:
        list(stream)
    assert "example 14" in caught.value.__notes__[0]
