"""What an example draws is its own: whoever reads it, when, and in what company."""

from __future__ import annotations

import functools
import random
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, Subset, TensorDataset, default_collate

import rightbatch as rb
from feeding import Whispers
from rightbatch.feed.randomness import MOST_ITEMS, Randomness, States, _same

SHARED = np.random.default_rng(5)  # a generator that a module keeps
Draw = Callable[[], float]


class Noisy(Dataset[Any]):
    """Examples with what ``draw`` gives, which is drawn only where ``often`` says."""

    def __init__(self, draw: Draw, length: int = 24, often: int = 1) -> None:
        self.draw, self.length, self.often = draw, length, often

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[int, float]:
        return index, self.draw() if index % self.often == 0 else 0.0


class AtOnce(Noisy):
    """The same, read a batch at a time; counts how."""

    many = ones = 0

    def __getitem__(self, index: int) -> tuple[int, float]:
        self.ones += 1
        return super().__getitem__(index)

    def __getitems__(self, indices: list[int]) -> list[tuple[int, float]]:
        self.many += 1
        return [super(AtOnce, self).__getitem__(i) for i in indices]


class Flip:
    """A transform with a generator of its own, inside another."""

    def __init__(self, generator: Any) -> None:
        self.inner = types.SimpleNamespace(all=[{"p": 0.5, "generator": generator}])

    def __call__(self) -> float:
        return float(self.inner.all[0]["generator"].random())


class Lazy:
    """Makes its generator when it is first used."""

    generator: np.random.Generator | None = None

    def __call__(self) -> float:
        if self.generator is None:
            self.generator = np.random.default_rng()
        return float(self.generator.random())


class Bound:
    """Whose method is the transform."""

    def __init__(self) -> None:
        self.generator = random.Random(3)

    def draw(self) -> float:
        return self.generator.random()


def of_a_torch_generator() -> Draw:
    generator = torch.Generator().manual_seed(3)
    return lambda: float(torch.rand((), generator=generator, dtype=torch.float64))


def of_two_alike() -> Draw:
    """Two generators with one seed must not draw the same."""
    first, second = np.random.default_rng(0), np.random.default_rng(0)
    return lambda: first.random() - second.random()


def scaled(factor: float, generator: Any) -> float:
    return factor * float(generator.random())


WAYS: dict[str, Callable[[], Draw]] = {
    "Python's": lambda: random.random,
    "numpy's": lambda: lambda: float(np.random.rand()),
    "torch's": lambda: lambda: float(torch.rand((), dtype=torch.float64)),
    "a closure's torch": of_a_torch_generator,
    "numpy, nested": lambda: Flip(np.random.default_rng(3)),
    "numpy, legacy": lambda: Flip(np.random.RandomState(3)),
    "numpy, Philox": lambda: Flip(np.random.Generator(np.random.Philox(3))),
    "Python, nested": lambda: Flip(random.Random(3)),
    "made when used": Lazy,
    "a method's": lambda: Bound().draw,
    "a partial's": lambda: functools.partial(scaled, 2.0, random.Random(3)),
    "a module's": lambda: lambda: float(SHARED.random()),
    "two alike": of_two_alike,
}


def seen(stream: rb.BatchStream, epochs: int = 2) -> list[tuple[int, float]]:
    """Every example and what it drew."""
    found = []
    for _ in range(epochs):
        for step in stream.steps():
            for micro in step:
                index, drawn = micro.data
                found += list(zip(index.tolist(), drawn.tolist(), strict=True))
    return found


@pytest.mark.parametrize("kind", [Noisy, AtOnce])
@pytest.mark.parametrize("way", WAYS)
def test_what_is_drawn_is_a_function_of_the_place(way: str, kind: type[Noisy]) -> None:
    """One example at a time, each by itself, is the slow and obviously right way."""
    expected = seen(rb.BatchStream(kind(WAYS[way]()), 1, seed=7))
    assert len({drawn for _, drawn in expected}) == 48  # anew at every place
    others: list[dict[str, Any]] = [
        {"batch_size": 24},
        {"batch_size": 10, "micro_batch": 3},
        {"batch_size": 7, "num_workers": 2},
    ]
    for settings in others:
        stream = rb.BatchStream(kind(WAYS[way]()), seed=7, **settings)
        assert seen(stream) == expected
        stream.close()
    assert seen(rb.BatchStream(kind(WAYS[way]()), 24, seed=8)) != expected


@pytest.mark.parametrize("often", [5, 24])
@pytest.mark.parametrize("way", ["numpy's", "a method's", "a module's"])
def test_examples_that_seldom_draw_draw_the_same(way: str, often: int) -> None:
    """Batches before the first drawing one are read at once: nothing else changes."""
    expected = seen(rb.BatchStream(Noisy(WAYS[way](), often=often), 1))
    for size in (2, 7, 24):
        assert seen(rb.BatchStream(AtOnce(WAYS[way](), often=often), size)) == expected


def test_nothing_is_seeded_or_read_alone_where_nothing_is_drawn() -> None:
    data = AtOnce(lambda: 1.0)
    stream = rb.BatchStream(data, 6)
    assert len(list(stream)) == data.many == 4
    assert data.ones == 0
    part = rb.BatchStream(Subset(data, list(range(10))), 5)
    data.many = 0
    assert len(list(part)) == data.many == 2


def test_what_draws_is_read_twice_once() -> None:
    data = AtOnce(random.random)
    assert len(seen(rb.BatchStream(data, 6), epochs=3)) == 72
    assert (data.many, data.ones) == (1, 72)
    data = AtOnce(random.random)
    seen(rb.BatchStream(data, 6, seeded=False))
    assert (data.many, data.ones) == (8, 0)


@pytest.mark.parametrize("draws", [True, False])
def test_the_loops_own_generators_are_not_touched(draws: bool) -> None:
    mine: list[Any] = [
        random.Random(1),
        np.random.default_rng(1),
        np.random.RandomState(1),
    ]
    mine += [torch.Generator().manual_seed(1)]
    data = Noisy(lambda: float(sum(g.random() for g in mine[:3])) if draws else 0.0)
    data.mine = mine  # pyrefly: ignore[missing-attribute]
    randomness = Randomness(data)
    randomness.look()
    assert len(randomness.own) == 4
    before = randomness.states()
    assert len(seen(rb.BatchStream(data, 6))) == 48
    assert not randomness.notice(before)
    mine[1].random()
    assert randomness.notice(before)


def moved(randomness: Randomness, before: States) -> bool:
    """Whether any generator stands elsewhere."""
    return any(not _same(state, before[g]) for g, state in randomness.states().items())


@pytest.mark.parametrize("where", range(7))
def test_every_generator_is_watched_and_seeded(where: int) -> None:
    """A state tells of one number drawn; equal seeds give equal numbers."""
    mine: list[Any] = [random.Random(1), np.random.default_rng(1)]
    mine += [np.random.RandomState(1), torch.Generator(), random.SystemRandom()]
    randomness = Randomness(mine)
    randomness.look()
    assert len(randomness.own) == 4  # the system's has no state
    draws: list[Draw] = [m.random for m in mine[:3]]
    draws.append(lambda: float(torch.rand((), generator=mine[3])))
    draws += [random.random, np.random.rand, lambda: float(torch.rand(()))]
    assert not randomness.draws
    at_first = randomness.states()
    everywhere = randomness.seeder(drawn=False)
    everywhere(2**64 - 1)
    before = randomness.states()
    assert not randomness.notice(before)
    drawn = draws[where]()
    assert randomness.notice(before)
    assert randomness.draws
    assert not randomness.notice(before)  # known by now
    randomness.seeder(drawn=True)(2**64 - 1)  # only the one that moved
    assert not moved(randomness, before)
    assert draws[where]() == drawn
    everywhere(3)
    assert draws[where]() != drawn
    randomness.restore(at_first)
    assert not moved(randomness, at_first)


def test_a_large_or_strange_data_set_is_looked_through_quickly() -> None:
    """Records are not transforms; cycles end; an empty cell is no trouble."""

    class Strange:
        def __init__(self) -> None:
            self.records = [random.Random(i) for i in range(MOST_ITEMS + 1)]
            self.itself, self.kind, self.module = self, Strange, np
            self.weights = torch.zeros(3)
            self.later: Any = None

    def empty() -> Any:
        strange = Strange()
        strange.later = lambda: value
        found = Randomness(strange)
        found.look()
        value = 1
        return found

    assert empty().own == []


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


def test_tensors_are_not_even_watched() -> None:
    class Watched(TensorDataset):
        pass

    data = torch.arange(6)
    for source in (TensorDataset(data), Subset(TensorDataset(data), [1, 2, 3])):
        stream = rb.BatchStream(source, 3)
        assert not stream._lookahead._fetch.seeded
    assert rb.BatchStream(Watched(data), 3)._lookahead._fetch.seeded


@pytest.mark.slow
def test_workers_that_do_not_inherit_draw_the_same() -> None:
    expected = seen(rb.BatchStream(Whispers(24), 5), epochs=1)
    stream = rb.BatchStream(
        Whispers(24), 5, num_workers=1, multiprocessing_context="spawn"
    )
    assert seen(stream, epochs=1) == expected
    assert len({drawn for _, drawn in expected}) == 24
    stream.close()


def test_a_collate_that_draws_is_seeded_by_its_micro_batch() -> None:
    def mixed(examples: list[Any]) -> Any:
        return [i for i, _ in examples], random.random()

    one = list(rb.BatchStream(Noisy(lambda: 0.0), 6, collate_fn=mixed))
    random.random()
    again = rb.BatchStream(Noisy(lambda: 0.0), 6, collate_fn=mixed, num_workers=1)
    assert list(again) == one
    again.close()


def test_a_failing_example_is_named_whichever_way_it_is_read() -> None:
    def fail() -> float:
        raise KeyError("no such file")

    for seeded in (True, False):
        data = Noisy(fail, often=5)
        stream = rb.BatchStream(data, 6, order="sequential", seeded=seeded)
        with pytest.raises(KeyError, match="no such file") as caught:
            list(stream)
        assert "example 0" in caught.value.__notes__[0]
