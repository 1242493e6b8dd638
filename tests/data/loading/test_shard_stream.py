"""Sources that can only be iterated: cut and resumed, as exactly as they allow."""

import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset

import reference
import rightbatch as rb
from rightbatch.data.loading.shard_stream import ShardStream
from rightbatch.data.loading.step import Step


def _same(x: Any) -> Any:
    return x


class Source(IterableDataset[int]):
    """Numbers, in another order every epoch, that say where they stand."""

    def __init__(self, length: int) -> None:
        self.length, self.epoch, self._start, self._at = length, 0, 0, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        start, self._start = self._start, 0
        for place in range(start, self.length):
            self._at = place
            yield reference.permuted(place, self.length, 0, self.epoch)

    def state_dict(self) -> dict[str, int]:
        return {"at": self._at + 1}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._start = state["at"]


class Forgetful(Source):
    """Its state leaves out what its shuffle buffer holds."""

    def __iter__(self) -> Iterator[int]:
        buffer: list[int] = []
        for number in super().__iter__():
            buffer.append(number)
            if len(buffer) > 20:
                yield buffer.pop(0)
        yield from buffer


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 200),
    st.lists(
        st.tuples(st.integers(1, 50), st.integers(1, 4), st.integers(1, 9)),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from(["keep", "carry", "drop"]),
    st.booleans(),
    st.one_of(st.none(), st.integers(1, 9)),
)
def test_an_iterable_source_is_cut_and_resumed_exactly(
    length: int,
    lives: list[tuple[int, int, int]],
    tail: str,
    stateful: bool,
    micro: int | None,
) -> None:
    state: dict[str, Any] | None = None
    order = (
        reference.epochs(length, 0, 60 * 9 * 6 // length + 3)
        if stateful
        else (list(range(length)) * (60 * 9 * 6 // length + 3))
    )
    at = 0
    for size, world, steps in lives:
        if tail == "drop":
            size = min(size, length)
        streams = []
        for rank in range(world):
            source = Source(length) if stateful else range(length)
            stream = ShardStream(
                source,
                size,
                micro_batch=micro,
                tail=tail,
                rank=rank,
                world_size=world,
                collate_fn=_same,
            )
            if state is not None:
                stream.load_state_dict(json.loads(json.dumps(state)))
                stream.batch_size = size
            streams.append(stream)
        loops = [_steps(stream) for stream in streams]
        for _ in range(steps):
            parts = [list(next(loop)) for loop in loops]
            assert len({len(p) for p in parts}) == 1  # as many backward passes
            shares = sum(m.share for p in parts for m in p)
            assert shares == pytest.approx(world)
            made = sorted(i for p in parts for m in p if m.share for i in m.data)
            left = length - at % length
            if tail == "drop" and left < size:
                at, left = at + left, length
            count = min(size, left) if tail == "keep" else size
            assert made == sorted(order[at : at + count])
            at += count
            states = [s.state_dict() for s in streams]
            assert all(s == states[0] for s in states)
            state = states[0]


def _steps(stream: ShardStream) -> Iterator[Step]:
    """Endless steps, over all epochs."""
    while True:
        yield from stream.steps()


class Counting:
    """Counts its own epochs; the next begins where one ends. Its state is exact."""

    def __init__(self, length: int) -> None:
        self.length, self.at, self.epoch = length, 0, 0

    def _place(self, place: int) -> int:
        return reference.permuted(place, self.length, 0, self.epoch)

    def __iter__(self) -> Iterator[int]:
        while self.at < self.length:
            self.at += 1
            yield self._place(self.at - 1)
        self.at, self.epoch = 0, self.epoch + 1

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at, "epoch": self.epoch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at, self.epoch = state["at"], state["epoch"]


class Exhausted(Counting):
    """Stays at its end; the next epoch begins when it is iterated again."""

    def __iter__(self) -> Iterator[int]:
        if self.at == self.length:
            self.at, self.epoch = 0, self.epoch + 1
        while self.at < self.length:
            self.at += 1
            yield self._place(self.at - 1)


class EmptyOnce(Counting):
    """Goes on to its end after a load, like most loaders; begins anew otherwise."""

    loaded = False

    def __iter__(self) -> Iterator[int]:
        if not self.loaded and self.at:
            self.at, self.epoch = 0, self.epoch + 1
        self.loaded = False
        while self.at < self.length:
            self.at += 1
            yield self._place(self.at - 1)

    def load_state_dict(self, state: dict[str, int]) -> None:
        super().load_state_dict(state)
        self.loaded = True


class Generating(Counting):
    """Shuffles by a generator that is never seeded anew."""

    def __init__(self, length: int) -> None:
        super().__init__(length)
        self.rng = random.Random(0)
        self.before: Any = self.rng.getstate()

    def __iter__(self) -> Iterator[int]:
        if not self.at:
            self.before = self.rng.getstate()
        else:
            self.rng.setstate(self.before)
        order = self.rng.sample(range(self.length), self.length)
        while self.at < self.length:
            self.at += 1
            yield order[self.at - 1]
        self.at = 0

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at, "before": self.before, "now": self.rng.getstate()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at, self.before = state["at"], state["before"]
        self.rng.setstate(state["now"])


class Told(Counting):
    """Is told its epoch, and keeps it in its state all the same."""

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        while self.at < self.length:
            self.at += 1
            yield self._place(self.at - 1)
        self.at = 0


@pytest.mark.parametrize("kind", [Counting, Exhausted, EmptyOnce, Generating, Told])
@pytest.mark.parametrize(
    ("tail", "size"),
    [("keep", 4), ("keep", 5), ("drop", 4), ("carry", 4), ("carry", 23)],
)
def test_a_source_that_holds_its_epoch_goes_on_from_every_step(
    kind: type[Counting], tail: str, size: int
) -> None:
    def stream() -> ShardStream:
        return ShardStream(kind(10), size, tail=tail, collate_fn=_same)

    def batches(of: ShardStream, count: int) -> list[list[int]]:
        loop = (batch for _ in range(99) for batch in of)
        return [next(loop) for _ in range(count)]

    whole = batches(stream(), 9)
    if tail != "drop":
        orders = [[i for batch in whole for i in batch][k : k + 10] for k in (0, 10)]
        assert orders[0] != orders[1]
    for after in range(1, 7):
        first, second = stream(), stream()
        seen = batches(first, after)
        second.load_state_dict(first.state_dict())
        assert seen + batches(second, 9 - after) == whole


def test_a_source_is_loaded_only_where_it_stands_somewhere_else() -> None:
    class Once(Counting):
        loads = 0

        def load_state_dict(self, state: dict[str, int]) -> None:
            self.loads += 1
            super().load_state_dict(state)

    source = Once(10)
    stream = ShardStream(source, 4, collate_fn=_same)
    for _ in range(3):
        list(stream)
    assert source.loads == 0
    stream.load_state_dict(stream.state_dict())
    assert sorted(i for batch in stream for i in batch) == list(range(10))
    assert source.loads == 1


class Kept(Source):
    """Records what it is given."""

    given: Any = None

    def state_dict(self) -> Any:
        return {"mine": torch.tensor([self._at + 1]), "more": {"kept": [1, (2,)]}}

    def load_state_dict(self, state: Any) -> None:
        self.given = state
        self._start = int(state["mine"])


def test_a_sources_own_state_is_handed_through_untouched() -> None:
    first = ShardStream(Kept(50), 7, collate_fn=_same)
    seen = next(iter(first))
    state = first.state_dict()
    assert state["source"] == Kept(50).state_dict() | {"mine": torch.tensor([7])}
    source = Kept(50)
    second = ShardStream(source, 7, collate_fn=_same)
    second.load_state_dict(state)
    seen += [i for batch in second for i in batch]
    assert source.given == state["source"]
    assert seen == reference.epochs(50, 0, 1)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_loader_of_single_examples_reads_ahead_for_a_stream() -> None:
    loader = DataLoader(_same(range(30)), batch_size=None, num_workers=1)
    stream = ShardStream(loader, 8, collate_fn=_same)
    seen = list(next(iter(stream)))
    again = ShardStream(loader, 8, collate_fn=_same)
    again.load_state_dict(stream.state_dict())
    assert seen + [i for batch in again for i in batch] == list(range(30))


def test_a_forgetful_source_is_read_again_without_its_state() -> None:
    first = ShardStream(Forgetful(300), 50, collate_fn=_same, use_state=False)
    seen = next(iter(first))
    again = ShardStream(Forgetful(300), 50, collate_fn=_same, use_state=False)
    again.load_state_dict(first.state_dict())
    assert sorted([*seen, *(i for b in again for i in b)]) == list(range(300))


def test_sharded_sources_need_the_same_ranks() -> None:
    stream = ShardStream(range(10), 4, sharded=True, rank=1, world_size=2)
    assert len(next(iter(stream))) == 2
    other = ShardStream(range(10), 4, sharded=True, rank=1, world_size=3)
    with pytest.raises(rb.SettingError, match="other ranks"):
        other.load_state_dict(stream.state_dict())
    with pytest.raises(rb.SettingError, match="not divided by 3"):
        next(iter(other))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ShardStream(iter([1]), 2), "an iterator"),
        (lambda: ShardStream([1], 2, tail="pad"), "keep, drop"),
        (
            lambda: ShardStream(DataLoader(_same(range(3))), 2),
            "its data set, loader.dataset",
        ),
        (lambda: next(iter(ShardStream([], 2))), "empty"),
        (lambda: list(ShardStream([1], 2, tail="drop")), "drops every batch"),
        (lambda: _ended(), "ends before the place"),
        (lambda: ShardStream([1], 2).load_state_dict({}), "no state"),
    ],
)
def test_sources_that_make_no_sense_are_refused(make: Any, message: str) -> None:
    with pytest.raises(rb.SettingError, match=message):
        make()


def _ended() -> None:
    """A state from the middle of a longer source."""
    state = ShardStream(range(50), 30)
    next(iter(state))
    short = ShardStream(range(5), 30)
    short.load_state_dict(state.state_dict())
    next(iter(short))


def test_ranks_share_out_uneven_steps_in_turns() -> None:
    held = []
    for rank in range(2):
        stream = ShardStream(range(21), 7, rank=rank, world_size=2)
        with pytest.warns(UserWarning, match="different numbers of examples"):
            held.append([len(batch) for batch in stream])
    assert held == [[4, 3, 4], [3, 4, 3]]
    counts = [
        sum(len(list(step)) for step in stream.steps())
        for stream in (
            ShardStream(range(9), 4, rank=rank, world_size=4) for rank in range(4)
        )
    ]
    assert counts == [3, 3, 3, 3]  # the last one has a filler on three ranks


class Counted:
    """Says how many examples were read; one of them cannot be."""

    def __init__(self, length: int, bad: int = -1) -> None:
        self.length, self.bad, self.read = length, bad, 0

    def __iter__(self) -> Iterator[int]:
        for number in range(self.length):
            if number == self.bad:
                raise OSError("bad block")
            self.read += 1
            yield number


@pytest.mark.parametrize("bad", [48, 50])
def test_what_was_read_before_an_error_is_handed_out(bad: int) -> None:
    """Also where the one behind a whole batch cannot be read."""
    stream = ShardStream(Counted(100, bad=bad), 8)
    seen: list[int] = []
    with pytest.raises(OSError, match="bad block"):
        for batch in stream:
            seen += batch.tolist()
    assert seen == list(range(48))
    assert stream.position == 48


def test_no_more_is_read_than_a_batch_and_one() -> None:
    source = Counted(100)
    next(iter(ShardStream(source, 4)))
    assert source.read <= 5


def test_a_step_that_is_left_comes_again_whoever_holds_it() -> None:
    stream = ShardStream(range(12), 4, micro_batch=2)
    held = stream.steps()
    left = next(held)
    assert next(iter(left)).data.tolist() == [0, 1]
    with pytest.raises(rb.SettingError, match="not gone through"):
        next(held)
    seen = [m.data.tolist() for step in stream.steps() for m in step]
    assert seen == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11]]
    assert (stream.epoch, stream.position, stream.step) == (1, 0, 3)
    with pytest.raises(rb.SettingError, match="is over"):
        list(left)


def test_a_smaller_batch_takes_what_a_step_that_was_left_had_read() -> None:
    """Also where a state was taken in between: the source stands further on."""
    stream = ShardStream(Source(60), 20, collate_fn=_same)
    next(stream.steps())  # left
    stream.batch_size = 6
    seen = [i for micro in next(stream.steps()) for i in micro.data]
    again = ShardStream(Source(60), 9, collate_fn=_same)
    again.load_state_dict(stream.state_dict())
    for rest in (again, stream):
        assert seen + [i for batch in rest for i in batch] == reference.epochs(60, 0, 1)


def test_a_source_goes_on_after_errors_and_bad_collates() -> None:
    class Flaky(Source):
        breaks = 0

        def __iter__(self) -> Iterator[int]:
            for number, value in enumerate(super().__iter__()):
                if not self.breaks and number == 70:
                    Flaky.breaks += 1
                    raise OSError("network")
                yield value

    fails = {3}

    def collate(examples: list[int]) -> list[int]:
        if stream.step in fails:
            fails.discard(stream.step)
            raise ValueError("bad collate")
        return examples

    stream = ShardStream(Flaky(150), 10, collate_fn=collate)
    seen: list[int] = []
    while not stream.epoch:
        try:
            for batch in stream:
                seen += batch
        except (OSError, ValueError):
            continue
    assert Flaky.breaks == 1
    assert not fails
    assert seen == reference.epochs(150, 0, 1)
