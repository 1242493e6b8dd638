"""What an example draws is its own: whoever reads it, when, and in what company."""

from __future__ import annotations

import functools
import importlib
import random
import types
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import (
    ConcatDataset,
    Dataset,
    Subset,
    TensorDataset,
    default_collate,
)

import rightbatch as rb
from feeding import Whispers
from rightbatch.data.loading.randomness import Randomness
from rightbatch.data.loading.reached import MOST_ITEMS, MOST_LOOKED_AT

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


class OfItsClass:
    generator = np.random.default_rng(3)

    def __call__(self) -> float:
        return float(self.generator.random())


class Helped:
    """By a method, a static one, a property and what it inherits."""

    def __call__(self) -> float:
        return self.apply() + self.still() + self.more

    def apply(self) -> float:
        raise NotImplementedError  # the subclass has it

    @staticmethod
    def still() -> float:
        return float(SHARED.random())

    @property
    def more(self) -> float:
        return MORE.random()


class Helping(Helped):
    def __call__(self) -> float:
        return super().__call__()

    def apply(self) -> float:
        return sum(float(MOST.random()) for _ in range(2))  # code inside of code


class Slotted:
    __slots__ = ("generator",)

    def __init__(self) -> None:
        self.generator = random.Random(3)

    def __call__(self) -> float:
        return self.generator.random()


class Change:
    """A transform that is not called but applied."""

    kept = random.Random(6)

    def apply(self) -> float:
        return MORE.random() + self.kept.random()


class Applied:
    def __init__(self) -> None:
        self.change = Change()

    def __call__(self) -> float:
        return self.change.apply()


def with_its_own_import() -> Draw:
    def draw() -> float:
        from feeding import OWN

        return OWN.random()

    return draw


def of_bits() -> Draw:
    bits = np.random.PCG64(3)
    return lambda: bits.random_raw() / 2**64


MORE, MOST = random.Random(4), np.random.RandomState(4)
AUGMENT = types.ModuleType("augment")  # a module of the user's own
exec(
    "import random\nrng = random.Random(5)\ndef flip():\n    return rng.random()\n",
    AUGMENT.__dict__,
)


def object_array() -> Draw:
    held = np.array([None, random.Random(1)], dtype=object)
    return lambda: held[1].random()


def of_a_default() -> Draw:
    mine = random.Random(3)

    def draw(generator: random.Random = mine) -> float:
        return generator.random()

    return draw


def wrapped() -> Draw:
    @functools.wraps(random.random)
    def draw() -> float:
        return inner()

    generator = random.Random(3)

    def inner() -> float:
        return [generator.random() for _ in range(2)][1]

    return draw


WAYS: dict[str, Callable[[], Draw]] = {
    "Python's": lambda: random.random,
    "Python's, bound": lambda: functools.partial(random.uniform, 0, 1),
    "numpy's": lambda: lambda: float(np.random.rand()),
    "numpy's normals": lambda: lambda: float(np.random.randn()),
    "torch's": lambda: lambda: float(torch.rand((), dtype=torch.float64)),
    "a closure's torch": of_a_torch_generator,
    "numpy, nested": lambda: Flip(np.random.default_rng(3)),
    "numpy, legacy": lambda: Flip(np.random.RandomState(3)),
    "numpy, legacy of another kind": lambda: Flip(
        np.random.RandomState(np.random.PCG64(3))
    ),
    "numpy, Philox": lambda: Flip(np.random.Generator(np.random.Philox(3))),
    "Python, nested": lambda: Flip(random.Random(3)),
    "made when used": Lazy,
    "a method's": lambda: Bound().draw,
    "a partial's": lambda: functools.partial(scaled, 2.0, random.Random(3)),
    "a module's": lambda: lambda: float(SHARED.random()),
    "two alike": of_two_alike,
    "its class's": OfItsClass,
    "helped": Helping,
    "slots": Slotted,
    "another module's": lambda: lambda: AUGMENT.rng.random(),
    "another module's function": lambda: lambda: AUGMENT.flip(),
    "an object array's": object_array,
    "a default's": of_a_default,
    "wrapped": wrapped,
    "applied": Applied,
    "applied at once": lambda: lambda: Change().apply(),
    "with its own import": with_its_own_import,
    "of bits": of_bits,
    "a built-in method": lambda: random.Random(3).random,
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
    mine: list[Any] = [random.Random(1), np.random.default_rng(1)]
    mine += [np.random.RandomState(1), torch.Generator().manual_seed(1)]
    data = Noisy(lambda: float(sum(g.random() for g in mine[:3])) if draws else 0.0)
    randomness = Randomness(data)
    randomness.look()
    assert len(randomness.own) == 4
    np.random.randn()  # the next one is kept already
    before = stand(randomness)
    assert len(seen(rb.BatchStream(data, 6))) == 48
    assert stand(randomness) == before
    mine[1].random()
    assert stand(randomness) != before


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_the_loops_own_generators_are_put_back_after_an_error(error: Any) -> None:
    def fail() -> float:
        random.random()
        raise error

    randomness = Randomness(None)
    randomness.look()
    before = stand(randomness)
    with pytest.raises(error):
        list(rb.BatchStream(Noisy(fail), 6))
    assert stand(randomness) == before


def stand(randomness: Randomness) -> str:
    """Where all generators are, as text."""
    with np.printoptions(threshold=10_000):
        states = [
            s.tolist() if isinstance(s, torch.Tensor) else s
            for _, s in randomness.states()
        ]
        return repr(states)


@pytest.mark.parametrize("where", range(8))
def test_every_generator_is_watched_and_seeded(where: int) -> None:
    """One number drawn is noticed; equal seeds give equal numbers."""
    mine: list[Any] = [random.Random(1), np.random.default_rng(1)]
    mine += [np.random.RandomState(1), torch.Generator(), random.SystemRandom()]
    mine += [np.random.RandomState(np.random.PCG64(1))]
    randomness = Randomness(mine)
    randomness.look()
    assert len(randomness.own) == 5  # the system's has no state
    draws: list[Draw] = [m.random for m in (*mine[:3], mine[5])]
    draws.append(lambda: float(torch.rand((), generator=mine[3])))
    draws += [random.random, np.random.rand, lambda: float(torch.rand(()))]
    assert not randomness.draws
    before, at_first = stand(randomness), randomness.states()
    value = 2**64 - 1
    randomness.seed(value)
    assert not randomness.notice(value)
    randomness.seed(value)
    drawn = draws[where]()
    assert randomness.notice(value)
    assert randomness.draws
    randomness.seed(value)
    draws[where]()
    assert not randomness.notice(value)  # known by now
    randomness.seeder()(value)
    assert draws[where]() == drawn
    randomness.seeder()(3)
    assert draws[where]() != drawn
    randomness.restore(at_first)
    assert stand(randomness) == before


def test_half_a_number_is_noticed() -> None:
    """PCG64 gives 64 bits as two numbers of 32, and keeps the second."""
    generator = np.random.default_rng(1)
    randomness = Randomness([generator])
    randomness.look()
    for _ in range(2):
        randomness.seed(5)
        generator.integers(10, dtype=np.uint32)
        assert randomness.notice(5)
        randomness._drawn.clear()


class Whole(Noisy):
    """Gives a made batch for many."""

    def __getitems__(self, indices: list[int]) -> dict[str, list[int]]:
        return {"many": indices}


def test_a_made_batch_is_not_taken_for_examples() -> None:
    """Else batches would change their kind where the first number is drawn."""
    data = Whole(random.random, often=24)
    kinds = {type(b) for b in rb.BatchStream(data, 6, collate_fn=lambda b: b)}
    assert kinds == {list}
    whole = rb.BatchStream(data, 6, collate_fn=lambda b: b, seeded=False)
    assert {type(b) for b in whole} == {dict}


class Remembers(Noisy):
    """Keeps what it has drawn for an example: labels with noise, say."""

    def __init__(self) -> None:
        super().__init__(random.random)
        self.kept: dict[int, float] = {}

    def __getitem__(self, index: int) -> tuple[int, float]:
        return index, self.kept.setdefault(index, self.draw())


def test_what_a_data_set_keeps_of_its_numbers_is_no_chance_either() -> None:
    """Though an example is drawn for before its seed is known to matter."""
    found = []
    for loop in range(2):
        random.seed(loop)
        found.append(seen(rb.BatchStream(Remembers(), 6, seed=1)))
    assert found[0] == found[1]


def test_other_generators_do_not_change_the_numbers_of_one() -> None:
    """Each is told from others by the way to it, not by how many there are."""
    expected = seen(rb.BatchStream(Noisy(Bound().draw), 6))

    class More(Noisy):
        def __init__(self) -> None:
            self.first = random.Random(8)
            super().__init__(Bound().draw)
            self.last = [np.random.default_rng(1)]

        def __getitem__(self, index: int) -> tuple[int, float]:
            if index == 5:
                self.late = np.random.default_rng(2)
            return super().__getitem__(index)

    assert seen(rb.BatchStream(More(), 6)) == expected


def test_a_global_of_an_attributes_name_is_none_of_the_code() -> None:
    names: dict[str, Any] = {"Noisy": Noisy, "random": random}
    text = """
class Data(Noisy):
    def __init__(self):
        super().__init__(lambda: self.generator.random())
        self.generator = random.Random(1)
"""
    exec(text, names)
    plain = Randomness(names["Data"]())
    plain.look()
    names["generator"] = random.Random(2)
    other = Randomness(names["Data"]())
    other.look()
    assert len(plain.own) == len(other.own) == 1
    assert plain.own[0].salt == other.own[0].salt


class Hostile:
    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("not bound")

    @property
    def __class__(self) -> Any:
        raise RuntimeError("not bound")


class LazyList(list[Any]):
    def __iter__(self) -> Any:
        raise RuntimeError("all would be loaded")

    def __len__(self) -> int:
        raise RuntimeError("all would be loaded")


class LazyDict(dict[str, Any]):
    def items(self) -> Any:
        raise RuntimeError("all would be loaded")


class NoState(random.Random):
    def getstate(self) -> Any:
        raise NotImplementedError  # as random.SystemRandom does


def test_objects_that_resist_are_left_alone() -> None:
    class Odd(Noisy):
        def __init__(self) -> None:
            super().__init__(lambda: 0.0)
            self.itself, self.kind, self.module = self, Odd, np
            self.things: list[Any] = [
                Hostile(),
                LazyList([1]),
                LazyDict(a=1),
                NoState(),
            ]
            self.things += [torch.zeros(3), np.zeros(3), "text", None, torch.Generator]
            self.dead = weakref.proxy(Bound())
            self.later: Any = lambda: value
            self.good = random.Random(3)

    odd = Odd()
    found = Randomness(odd)
    found.look()
    value = 1  # an empty cell until now
    assert value
    assert len(found.own) == 1
    assert len(seen(rb.BatchStream(odd, 6, collate_fn=default_collate))) == 48


def test_odd_classes_and_modules_are_looked_at_too() -> None:
    class Kind(type):
        def __eq__(cls, other: object) -> bool:
            return False

        __hash__: Any = None

    class Odd(Noisy, metaclass=Kind):
        pass

    nameless = types.ModuleType("nameless")
    del nameless.__name__

    def draw() -> float:
        return nameless.missing if MORE is None else MORE.random()

    found = Randomness(Odd(draw))
    found.look()
    assert len(found.own) == 1


def test_relative_imports_inside_of_functions_are_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "a_package"
    package.mkdir()
    (package / "__init__.py").write_text("import random\nTOP = random.Random(1)\n")
    (package / "sub.py").write_text("import random\nRNG = random.Random(2)\n")
    (package / "ways.py").write_text(
        "def relative():\n    from .sub import RNG\n    return RNG.random()\n"
        "def module():\n    from . import sub\n    return sub.RNG.random()\n"
        "def dotted():\n    import a_package.sub\n"
        "    return a_package.sub.RNG.random() + a_package.TOP.random()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    ways: Any = importlib.import_module("a_package.ways")
    importlib.import_module("a_package.sub")
    for way, count in ((ways.relative, 1), (ways.module, 1), (ways.dotted, 2)):
        found = Randomness(Noisy(way))
        found.look()
        assert len(found.own) == count, way


def test_records_are_passed_over_and_parts_are_not() -> None:
    class Annotated(Noisy):
        def __init__(self) -> None:
            boxes = [{"box": [0, 1, 2, 3], "label": "cat"} for _ in range(60)]
            self.notes = {str(i): [dict(b) for b in boxes] for i in range(200)}
            super().__init__(Flip(random.Random(3)))

    found = Randomness(Annotated())
    found.look()
    assert len(found.own) == 1
    many = ConcatDataset([Noisy(Flip(random.Random(i))) for i in range(300)])
    parts = Randomness(many)
    parts.look()
    assert len(parts.own) == 300
    records = Noisy(random.random)
    records.records = [random.Random(i) for i in range(300)]  # pyrefly: ignore
    few = Randomness(records)
    few.look()
    assert len(few.own) == MOST_ITEMS


def test_a_search_that_is_cut_short_is_said() -> None:
    class Huge(Noisy):
        def __init__(self) -> None:
            super().__init__(random.random)
            row = [[object() for _ in range(200)] for _ in range(200)]
            self.rows = row

    assert MOST_LOOKED_AT < 200 * 200
    with pytest.warns(UserWarning, match="more than 20,000 objects"):
        next(iter(rb.BatchStream(Huge(), 6)))


def test_a_data_set_that_was_changed_is_looked_through_again() -> None:
    data = Noisy(Flip(random.Random(3)))
    stream = rb.BatchStream(data, 6)
    list(stream)
    data.draw = Flip(np.random.default_rng(3))
    stream.close()
    found = seen(stream, epochs=1)
    fresh = rb.BatchStream(Noisy(Flip(np.random.default_rng(9))), 6)
    fresh.set_epoch(1)
    assert found == seen(fresh, epochs=1)


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


def mixed(examples: list[Any]) -> Any:
    return len(examples), random.random(), float(torch.rand(()))


@pytest.mark.parametrize(
    "data", [Noisy(lambda: 0.0), Noisy(random.random), TensorDataset(torch.arange(24))]
)
def test_a_collate_that_draws_is_seeded_by_its_micro_batch(data: Any) -> None:
    one = list(rb.BatchStream(data, 6, collate_fn=mixed))
    assert len({numbers for _, *numbers in map(tuple, one) for numbers in numbers}) == 8
    before = random.getstate()
    again = rb.BatchStream(data, 6, collate_fn=mixed, num_workers=1)
    assert list(again) == one == list(rb.BatchStream(data, 6, collate_fn=mixed))
    assert random.getstate() == before
    again.close()


def test_a_collates_numbers_are_not_its_first_examples() -> None:
    def both(examples: list[Any]) -> Any:
        return examples[0][1], float(torch.rand((), dtype=torch.float64))

    draw = WAYS["torch's"]()
    for first, own in rb.BatchStream(Noisy(draw), 6, collate_fn=both):
        assert first != own


@pytest.mark.parametrize("whole", [True, False])
def test_a_failing_example_is_named_whichever_way_it_is_read(whole: bool) -> None:
    for seeded in (True, False):
        data = Fails() if whole else Subset(Fails(), list(range(24)))
        stream = rb.BatchStream(data, 6, order="sequential", seeded=seeded)
        with pytest.raises(KeyError, match="no such file") as caught:
            list(stream)
        assert "example 14" in caught.value.__notes__[0]


class Fails(Noisy):
    """One of its files is missing."""

    def __init__(self) -> None:
        super().__init__(lambda: 0.0)

    def __getitem__(self, index: int) -> tuple[int, float]:
        if index == 14:
            raise KeyError("no such file")
        return super().__getitem__(index)
