"""What an example draws is its own: whoever reads it, when, and in what company."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, StackDataset, Subset

import rightbatch as rb
from feeding import Whispering, Whispers

Draw = Callable[[], float]


class Noisy(Dataset[Any]):
    """Examples with what ``draw`` gives, which is drawn only where ``often`` says."""

    def __init__(self, draw: Draw, length: int = 24, often: int = 1) -> None:
        self.draw, self.length, self.often = draw, length, often
        self.read_many = self.read_single = 0

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[int, float]:
        self.read_single += 1
        return index, self.draw() if index % self.often == 0 else 0.0


class AtOnce(Noisy):
    """The same, read a batch at a time."""

    def __getitems__(self, indices: list[int]) -> list[tuple[int, float]]:
        self.read_many += 1
        return [Noisy.__getitem__(self, i) for i in indices]


DRAWS: dict[str, Draw] = {
    "Python's": random.random,
    "Python's normals": lambda: random.gauss(0, 1),
    "numpy's": lambda: float(np.random.rand()),
    "numpy's normals": lambda: float(np.random.randn()),
    "torch's": lambda: float(torch.rand((), dtype=torch.float64)),
    "all": lambda: random.random() + np.random.rand() + float(torch.rand(())),
}


def seen(stream: rb.BatchStream, epochs: int = 2) -> list[tuple[int, float]]:
    """Every example and what it drew."""
    pairs = []
    for _ in range(epochs):
        for step in stream.steps():
            for micro in step:
                index, drawn = micro.data
                pairs += list(zip(index.tolist(), drawn.tolist(), strict=True))
    return pairs


@pytest.mark.parametrize("kind", [Noisy, AtOnce])
@pytest.mark.parametrize("way", DRAWS)
def test_what_is_drawn_is_a_function_of_the_place(way: str, kind: type[Noisy]) -> None:
    """One example at a time, each by itself, is the slow and obviously right way."""
    expected = seen(rb.BatchStream(kind(DRAWS[way]), 1, seed=7))
    assert len({drawn for _, drawn in expected}) == 48  # anew at every place
    others: list[dict[str, Any]] = [
        {"batch_size": 24},
        {"batch_size": 10, "micro_batch": 3},
        {"batch_size": 7, "num_workers": 2},
    ]
    for settings in others:
        with rb.BatchStream(kind(DRAWS[way]), seed=7, **settings) as stream:
            assert seen(stream) == expected
    assert seen(rb.BatchStream(kind(DRAWS[way]), 24, seed=8)) != expected


@pytest.mark.parametrize("often", [5, 24])
def test_examples_that_seldom_draw_draw_the_same(often: int) -> None:
    expected = seen(rb.BatchStream(Noisy(DRAWS["all"], often=often), 1))
    for size in (2, 7, 24):
        data = AtOnce(DRAWS["all"], often=often)
        assert seen(rb.BatchStream(data, size)) == expected


def test_examples_are_read_singly_only_where_they_draw() -> None:
    quiet = AtOnce(lambda: 1.0)
    seen(rb.BatchStream(quiet, 6), epochs=1)
    assert (quiet.read_many, quiet.read_single) == (4, 24)
    part = rb.BatchStream(Subset(AtOnce(lambda: 1.0), list(range(10))), 5)
    assert len(list(part)) == part.dataset.dataset.read_many == 2
    noisy = AtOnce(random.random)
    seen(rb.BatchStream(noisy, 6), epochs=3)
    assert (noisy.read_many, noisy.read_single) == (1, 6 + 72)  # the first batch twice
    noisy = AtOnce(random.random)
    seen(rb.BatchStream(noisy, 6, seeded=False))
    assert noisy.read_many == 8


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("draws", [True, False])
def test_the_loops_own_generators_are_not_touched(draws: bool, error: Any) -> None:
    def draw() -> float:
        drawn = DRAWS["all"]() if draws else 0.0
        if error is not None:
            raise error
        return drawn

    def numbers() -> list[float]:
        return [random.random(), np.random.rand(), float(torch.rand(()))]

    def seed() -> None:
        random.seed(3)
        np.random.seed(3)
        torch.manual_seed(3)

    seed()
    expected = numbers()
    seed()
    stream = rb.BatchStream(Noisy(draw), 6)
    if error is None:
        seen(stream)
    else:
        with pytest.raises(error):
            list(stream)
    assert numbers() == expected


class Transform:
    """As Albumentations' transforms: generators of its own, and a way to seed them."""

    def __init__(self) -> None:
        self.set_random_seed(None)

    def set_random_seed(self, seed: int | None) -> None:
        self.generator, self.other = random.Random(seed), np.random.default_rng(seed)

    def __call__(self) -> float:
        return self.generator.random() + self.other.random()


class Transformed(Noisy):
    def __init__(self) -> None:
        self.transform = Transform()
        super().__init__(self.transform)


class Listed(Noisy):
    def __init__(self) -> None:
        last = Transform()
        self.transforms = [abs, last]
        super().__init__(last)


class SeedsItself(Transform, Noisy):
    def __init__(self) -> None:
        Noisy.__init__(self, lambda: self())
        Transform.__init__(self)


HOLDERS: dict[str, Callable[[], Any]] = {
    "data set": SeedsItself,
    "transform": Transformed,
    "transforms": Listed,
    "of a subset": lambda: Subset(Transformed(), list(range(24))),
    "of a concatenation": lambda: ConcatDataset(
        [Subset(Transformed(), list(range(12))), Listed()]
    ),
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_what_has_set_random_seed_gets_it(holder: str) -> None:
    expected = seen(rb.BatchStream(HOLDERS[holder](), 1))
    assert len({drawn for _, drawn in expected}) == len(expected)
    with rb.BatchStream(HOLDERS[holder](), 7, num_workers=1) as stream:
        assert seen(stream) == expected


def test_parts_that_are_stacked_are_seeded_too() -> None:
    def drawn() -> Any:
        stacked = StackDataset(x=Transformed(), y=Listed())
        return next(iter(rb.BatchStream(stacked, 24)))["y"][1].tolist()

    assert drawn() == drawn()


def test_a_seed_function_seeds_the_rest() -> None:
    generator = np.random.default_rng()

    def reseed(seed: int) -> None:
        assert 0 <= seed < 2**32
        generator.bit_generator.state = np.random.PCG64(seed).state

    def stream(size: int) -> rb.BatchStream:
        return rb.BatchStream(Noisy(generator.random), size, seed_fn=reseed)

    expected = seen(stream(1))
    assert len({drawn for _, drawn in expected}) == 48
    assert seen(stream(7)) == expected


@pytest.mark.slow
def test_workers_that_do_not_inherit_draw_the_same() -> None:
    """They get the seed function too; a default of another type changes nothing."""
    data, options = Whispers(24), dict[str, Any](seed_fn=Whispering())
    expected = seen(rb.BatchStream(data, 5, **options), epochs=1)
    options |= {"num_workers": 1, "multiprocessing_context": "spawn"}
    drawn_there = None
    for last in (False, False, True):
        try:
            with rb.BatchStream(data, 5, **options) as stream:
                drawn_there = seen(stream, epochs=1)
            break
        except RuntimeError as error:  # torch's worker, while it ends on a busy machine
            if last or "killed by signal: Aborted" not in str(error):
                raise
    assert drawn_there == expected
    assert len({drawn for _, drawn in expected}) == 24


def test_a_default_of_another_type_is_no_draw() -> None:
    quiet = AtOnce(lambda: 1.0)
    torch.set_default_dtype(torch.float64)
    try:
        seen(rb.BatchStream(quiet, 6), epochs=1)
    finally:
        torch.set_default_dtype(torch.float32)
    assert quiet.read_many == 4


def mixed(examples: list[Any]) -> Any:
    return len(examples), random.random(), float(torch.rand(()))


@pytest.mark.parametrize("draw", [lambda: 0.0, random.random])
def test_a_collate_that_draws_is_seeded_by_its_micro_batch(draw: Draw) -> None:
    batches = list(rb.BatchStream(Noisy(draw), 6, collate_fn=mixed))
    assert len({number for _, *numbers in batches for number in numbers}) == 8
    before = random.getstate()
    with rb.BatchStream(Noisy(draw), 6, collate_fn=mixed, num_workers=1) as again:
        assert list(again) == batches
    assert random.getstate() == before


def test_a_collates_numbers_are_not_its_first_examples() -> None:
    def both(examples: list[Any]) -> Any:
        return examples[0][1], DRAWS["torch's"]()

    for first, of_collate in rb.BatchStream(
        Noisy(DRAWS["torch's"]), 6, collate_fn=both
    ):
        assert first != of_collate
