"""What a hostile reader found, each once."""

import contextlib
import itertools
import json
import random
import resource
import sys
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    Subset,
    TensorDataset,
    random_split,
)

import rightbatch as rb
from rightbatch.data.loading.arguments import fingerprint_of, subset_of
from rightbatch.data.loading.batch_sampler import BatchSampler
from rightbatch.data.loading.ledger import Ledger
from rightbatch.data.loading.shard_stream import ShardStream
from rightbatch.data.loading.state import alike
from rightbatch.data.loading.workers import Begin
from test_shards import Source, _same

DATA = (torch.arange(40),)


def test_a_step_ends_where_the_stream_is_sent_elsewhere() -> None:
    for send in ("skip", "set_epoch", "load_state_dict"):
        stream = rb.BatchStream(DATA, 8, micro_batch=2)
        start = stream.state_dict()
        argument = {"skip": 1, "set_epoch": 3, "load_state_dict": start}[send]
        stream.skip(1)
        step = next(stream.steps())
        parts = iter(step)
        next(parts)
        getattr(stream, send)(argument)
        after = stream.state_dict()
        with pytest.raises(rb.SettingError, match="is over"):
            list(parts)
        assert stream.state_dict() == after


def test_a_sampler_says_when_it_is_sent_elsewhere_in_a_loop() -> None:
    sampler = BatchSampler(40, 8)
    loader = DataLoader(TensorDataset(*DATA), batch_sampler=sampler)
    for loop in (iter(sampler), sampler.follow(loader)):
        next(loop)
        sampler.set_epoch(sampler.epoch + 1)
        with pytest.raises(rb.SettingError, match="somewhere else"):
            next(loop)
    first, second = sampler.follow(loader), sampler.follow(loader)
    next(first)
    next(second)
    del first
    next(second)


def test_a_sampler_with_too_few_examples_for_the_ranks_says_so() -> None:
    sampler = BatchSampler(10, 8, rank=3, world_size=4)
    with pytest.warns(UserWarning, match="different numbers"):
        assert len(list(sampler)) == 2
    found = rb.audit(DataLoader(TensorDataset(torch.arange(10)), batch_sampler=sampler))
    assert found.repeated == 2  # what the ranks without an example were given


def test_skipping_goes_where_reading_would() -> None:
    streams = [rb.BatchStream((torch.arange(30),), 5, tail="drop") for _ in range(2)]
    for stream in streams:
        for _ in range(5):
            list(next(stream.steps()))
        stream.batch_size = 8
    assert (len(streams[0]), streams[0].steps_left) == (3, 3)
    streams[0].skip(1)
    list(next(streams[1].steps()))
    assert streams[0].state_dict() == streams[1].state_dict()


def test_writing_into_what_was_handed_out_does_no_harm() -> None:
    stream = rb.BatchStream(DATA, 8, order=rb.data.Strata(DATA[0] % 2))
    state = stream.state_dict()
    for step in stream.steps():
        for micro in step:
            for tensor in (micro.indices, micro.weights, micro.groups):
                tensor.zero_()
    plain = rb.BatchStream(DATA, 8)
    begin = plain.state_dict()
    first = [m.indices.clone() for s in plain.steps() for m in s]
    plain.load_state_dict(begin)
    for step in plain.steps():
        for micro in step:
            micro.indices.zero_()
    plain.load_state_dict(begin)
    again = [m.indices for s in plain.steps() for m in s]
    assert torch.equal(torch.cat(first), torch.cat(again))
    stream.load_state_dict(state)


def test_numpy_numbers_leave_a_state_of_plain_ones() -> None:
    stream = rb.BatchStream(DATA, 8)
    stream.set_epoch(np.int64(2))  # pyrefly: ignore[bad-argument-type]
    stream.batch_size = np.int64(7)  # pyrefly: ignore[bad-argument-type]
    json.dumps(stream.state_dict())


class Breaks:
    """Raises what also a broken queue raises."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> int:
        raise self.error


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", [EOFError, ConnectionResetError])
def test_an_error_of_the_data_set_is_not_taken_for_a_dead_worker(
    kind: type[Exception], workers: int
) -> None:
    stream = rb.BatchStream(Breaks(kind("truncated")), 8, num_workers=workers)
    with pytest.raises(kind, match="truncated"):
        next(iter(stream))


def test_a_source_goes_on_after_close_errors_and_bad_collates() -> None:
    class Flaky(Source):
        broken = True

        def __iter__(self) -> Any:
            for number, value in enumerate(super().__iter__()):
                if self.broken and number == 70:
                    Flaky.broken = False
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
    for _ in range(60):
        try:
            for batch in stream:
                seen += batch
                if stream.step % 4 == 0:
                    stream.close()
        except (OSError, ValueError):
            continue
        break
    expected = ShardStream(Source(150), 150, collate_fn=_same)
    assert seen == next(iter(expected))
    with pytest.raises(rb.SettingError, match="new ShardStream"):
        stream.load_state_dict(stream.state_dict())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"world_size": 2}, "belong together"),
        ({"rank": 1}, "belong together"),
        ({"collate_fn": list}, "no effect on a tuple"),
        ({"ledger": "x", "order": "poisson"}, "nothing to prove"),
    ],
)
def test_settings_without_effect_are_refused(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(rb.SettingError, match=message):
        rb.BatchStream(DATA, 8, **arguments)


def test_a_stream_made_before_the_process_group_says_so(monkeypatch: Any) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.warns(UserWarning, match="not initialised"):
        rb.BatchStream(DATA, 8)


def test_steps_that_nobody_goes_through_do_not_come_forever() -> None:
    stream = rb.BatchStream(DATA, 8)
    with pytest.raises(rb.SettingError, match="not gone through"):
        list(stream.steps())


def test_the_ledger_knows_a_dropped_tail_and_an_earlier_run(tmp_path: Path) -> None:
    stream = rb.BatchStream((torch.arange(30),), 11, tail="drop", ledger=tmp_path)
    for _ in stream:  # 11, then 11, then 8 that are dropped
        pass
    stream.batch_size = 7
    for _ in range(3):
        list(next(stream.steps()))
    stream.batch_size = 20  # 9 are left
    list(next(stream.steps()))
    found = Ledger(tmp_path).audit(30)
    assert (found.lost, found.repeated, found.dropped) == (0, 0, 17 + 10)
    anew = rb.BatchStream((torch.arange(30),), 11, ledger=tmp_path)
    with pytest.warns(UserWarning, match="ledger of an earlier run"):
        next(iter(anew))


@pytest.mark.parametrize("way", ["steps", "skip", "set_epoch"])
def test_a_step_that_the_ledger_cannot_hold_is_not_behind(
    way: str, tmp_path: Path
) -> None:
    """A full disk, by a limit on the size of files: then there is room again."""
    stream = rb.BatchStream((torch.arange(100),), 10, ledger=tmp_path, tail="drop")
    handed = [batch for _, (batch,) in zip(range(3), stream, strict=False)]
    (path,) = tmp_path.glob("segment-*")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, limits[1]))
    try:
        with pytest.raises(rb.RunFolderError, match="cannot write the ledger"):
            if way == "steps":
                list(stream)
            else:
                stream.skip() if way == "skip" else stream.set_epoch(1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (stream.step, stream.position, stream.epoch) == (3, 30, 0)
    handed += [batch for (batch,) in stream]
    assert torch.cat(handed).sort().values.tolist() == list(range(100))
    audit = Ledger(tmp_path).audit()
    assert (audit.examples, audit.lost, audit.repeated) == (100, 0, 0)


def test_a_damaged_ledger_is_said(tmp_path: Path) -> None:
    stream = rb.BatchStream((torch.arange(30),), 10, ledger=tmp_path)
    list(stream)
    (path,) = tmp_path.glob("segment-*")
    text = path.read_text()
    path.write_text(text + text[:20])  # a process was killed while it wrote
    assert Ledger(tmp_path).audit().exact
    path.write_text(text[:20] + text)
    with pytest.raises(rb.RunFolderError, match="is damaged"):
        Ledger(tmp_path).audit()


class Table:
    """As much of a Hugging Face data set as tells one from another."""

    _indices: Any = None

    def __init__(self, rows: list[int], transform: Any = None) -> None:
        self.rows, self.transform = rows, transform
        kind = "custom" if transform else None
        self.format: dict[str, str | None] = {"type": kind}
        # With a transform another one in every process.
        self._fingerprint = f"{id(self)}" if transform else f"{rows}"

    def with_format(self, kind: str) -> "Table":
        assert kind == "arrow"
        return Table(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        if self.transform:
            return self.transform(self.rows[index])
        batch = types.SimpleNamespace(serialize=lambda: batch)
        batch.to_pybytes = str(self.rows[index]).encode
        batch.combine_chunks = lambda: types.SimpleNamespace(to_batches=lambda: [batch])
        return batch


def test_a_transform_is_no_other_data_set() -> None:
    """Its fingerprint may hold a generator's state; rows are what counts."""
    state = rb.BatchStream(Table(list(range(100)), random.gauss), 10).state_dict()
    again = rb.BatchStream(Table(list(range(100)), abs), 10)
    again.load_state_dict(state)
    for rows in ([*range(99), -1], [-1, *range(1, 100)], list(range(100, 0, -1))):
        with pytest.raises(rb.SettingError, match="another data set"):
            rb.BatchStream(Table(rows, abs), 10).load_state_dict(state)


class Tagged(Dataset[Any]):
    tag = 0

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[int, int]:
        info: Any = torch.utils.data.get_worker_info()
        assert info is None or info.dataset is self
        return index, self.tag


def tag(worker: int) -> None:
    info: Any = torch.utils.data.get_worker_info()
    assert worker == info.id
    info.dataset.tag = 5


def test_worker_init_sees_the_users_own_data_set() -> None:
    with rb.BatchStream(Tagged(), 4, num_workers=1, worker_init_fn=tag) as stream:
        assert {t for _, tags in stream for t in tags.tolist()} == {5}
    with rb.BatchStream(Tagged(), 4, num_workers=1) as stream:
        assert {t for _, tags in stream for t in tags.tolist()} == {0}


class Sleeps(Tagged):
    def __getitem__(self, index: int) -> tuple[int, int]:
        if index == 4:
            time.sleep(1.0)
        return index, 0


def test_a_long_wait_for_workers_is_said_and_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rightbatch.data.loading.prefetch.CHECK_S", 0.1)
    monkeypatch.setattr("rightbatch.data.loading.prefetch.LONG_S", 0.3)
    stream = rb.BatchStream(Sleeps(), 2, num_workers=2, order="sequential")
    with pytest.warns(UserWarning, match="no batch has come from the data") as told:
        seen = [i for index, _ in stream for i in index.tolist()]
    assert seen == list(range(8))
    assert len(told) <= 4  # once for a wait, however long
    stream.close()


def keep_even(examples: list[Any]) -> torch.Tensor:
    return torch.tensor([index for index, _ in examples if index % 2 == 0])


def test_a_collate_that_leaves_examples_out_is_said() -> None:
    with pytest.warns(UserWarning, match="made 4 examples of 8"):
        list(rb.BatchStream(Tagged(), 8, collate_fn=keep_even))
    for packed in (
        lambda examples: torch.zeros(1, 3 * len(examples)),
        lambda examples: [torch.zeros(5) for _ in examples],
        lambda examples: [torch.zeros(5), torch.zeros(6)],
        lambda examples: {"text": torch.zeros(50), "ends": torch.zeros(9)},
        list,
    ):
        list(rb.BatchStream(Tagged(), 8, collate_fn=packed))


def test_a_length_that_changes_is_said() -> None:
    class Grows(Tagged):
        def __len__(self) -> int:
            return 8 + self.tag

    data = Grows()
    stream = rb.BatchStream(data, 4)
    assert len(list(stream)) == 2
    data.tag = 4
    with pytest.raises(rb.SettingError, match="8 examples when the stream was made"):
        list(stream)
    data.tag = 0
    assert len(list(stream)) == 2


def test_messages_name_what_helps() -> None:
    parts = {"train": Tagged(), "test": [1, 2]}
    with pytest.raises(rb.SettingError, match=r"data\['train'\]"):
        rb.BatchStream(parts, 2)
    with pytest.raises(rb.SettingError, match="StackDataset"):
        rb.BatchStream({"x": [1, 2], "y": [3, 4]}, 2)
    with pytest.raises(rb.SettingError, match="labels alone"):
        rb.data.Strata([(torch.zeros(2), 1), (torch.zeros(3), 0)])
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = rb.data.Nonsense
    y = [0, 0, 1, 1]
    state = rb.BatchStream((torch.tensor(y),), 2, order=rb.data.Strata(y)).state_dict()
    other = rb.BatchStream((torch.tensor(y),), 2, order=rb.data.Strata([0] * 4))
    with pytest.raises(rb.SettingError, match="other labels"):
        other.load_state_dict(state)
    with pytest.raises(RuntimeError) as caught:
        list(rb.BatchStream(Ragged(), 4))
    assert "collate_fn" in caught.value.__notes__[-1]


class Ragged(Tagged):
    def __getitem__(self, index: int) -> Any:
        return torch.zeros(index + 1)


@pytest.mark.parametrize("times", [1, 9])
def test_workers_that_never_begin_are_started_anew(
    times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, started = Begin.__call__, tmp_path / "started"

    def slowly(self: Begin, worker: int) -> None:
        with started.open("a") as file:
            file.write(".")
        if len(started.read_text()) <= times:
            time.sleep(60)  # stands still before it begins
        begin(self, worker)

    monkeypatch.setattr(Begin, "__call__", slowly)
    monkeypatch.setattr("rightbatch.data.loading.prefetch.CHECK_S", 0.5)
    monkeypatch.setattr("rightbatch.data.loading.prefetch.BEGIN_S", 1.5)
    stream = rb.BatchStream(Tagged(), 2, num_workers=1, order="sequential")
    with pytest.warns(UserWarning, match="1 of 1 data workers did not begin"):
        if times == 1:
            assert [i for b, _ in stream for i in b.tolist()] == list(range(8))
        else:
            with pytest.raises(rb.JobError, match="do not begin"):
                list(stream)
            assert stream.step == 0
    stream.close()


def test_an_error_that_speaks_of_a_timeout_is_the_data_sets_own() -> None:
    class Speaks(Tagged):
        def __getitem__(self, index: int) -> tuple[int, int]:
            if index == 5:
                raise RuntimeError("DataLoader timed out after 5.0 seconds")
            return index, 0

    for workers in (0, 1):
        stream = rb.BatchStream(Speaks(), 2, order="sequential", num_workers=workers)
        with pytest.raises(RuntimeError, match="timed out after 5"):
            list(stream)
        assert stream.position == 4
        stream.close()


def test_what_was_asked_of_a_loader_that_is_gone_is_forgotten() -> None:
    """As a second Ctrl-C would leave it, in the middle of the first one's stop."""
    stream = rb.BatchStream(Tagged(), 2, order="sequential", num_workers=1)
    batches = iter(stream)
    assert next(batches)[0].tolist() == [0, 1]
    stream._lookahead._loaded = None
    seen = [batch.tolist() for batch, _ in batches]
    assert seen == [[2, 3], [4, 5], [6, 7]]
    stream.close()


def test_a_ledger_goes_on_after_its_first_line_failed(tmp_path: Path) -> None:
    stream = rb.BatchStream((torch.arange(12),), 4, ledger=tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with pytest.raises(rb.RunFolderError, match="cannot write"):
            list(stream)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    list(stream)
    assert str(Ledger(tmp_path).audit()).startswith("12 examples in 3 steps, 1 whole")
    next(tmp_path.glob("segment-*")).unlink()
    with pytest.raises(rb.RunFolderError, match="cannot write"):
        list(stream)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("line", range(12))
def test_an_interrupt_leaves_ledger_and_stream_of_one_mind(
    line: int, tmp_path: Path
) -> None:
    """Ctrl-C at every line that commits a step: it is behind in both, or in neither."""
    stream = rb.BatchStream((torch.arange(12),), 4, ledger=tmp_path)
    next(iter(stream))
    count = itertools.count()

    def trace(frame: Any, event: str, _: Any) -> Any:
        if frame.f_code.co_name not in ("_commit", "_append"):
            return None if event == "call" else trace
        if event == "line" and next(count) == 2 * line:
            raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            next(iter(stream))
    finally:
        sys.settrace(None)
    list(stream)
    audit = Ledger(tmp_path).audit()
    assert (audit.examples, audit.lost, audit.repeated) == (12, 0, 0)


def test_another_random_split_is_another_data_set() -> None:
    data = TensorDataset(torch.arange(100))
    seeds = [torch.Generator().manual_seed(seed) for seed in (1, 1, 2)]
    parts = [random_split(data, [80, 20], seed) for seed in seeds]
    state = rb.BatchStream(parts[0][0], 8).state_dict()
    rb.BatchStream(parts[1][0], 8).load_state_dict(state)
    with pytest.raises(rb.SettingError, match="another data set"):
        rb.BatchStream(parts[2][0], 8).load_state_dict(state)
    both = ConcatDataset([parts[0][1], parts[0][0]])
    state = rb.BatchStream(both, 8).state_dict()
    with pytest.raises(rb.SettingError, match="another data set"):
        rb.BatchStream(ConcatDataset(parts[2]), 8).load_state_dict(state)


class Keyed:
    """Read by other things than numbers, through a subset."""

    def __getitem__(self, key: Any) -> int:
        return len(key)


def test_subsets_of_any_indices_are_taken() -> None:
    odd: Any = Keyed()
    for indices in (["a", "bcd"], [(0, 1), (2,)], [(0, 1), (2, 3)]):
        keys: Any = indices
        (batch,) = rb.BatchStream(Subset(odd, keys), 2)
        assert sorted(batch.tolist()) == sorted(map(len, keys))
    data = TensorDataset(torch.arange(10**6))
    some: list[Any] = [range(10**6), range(0, 10**6, 2), [1, 2, 3], [1, 3, 2]]
    some.append(np.array([3, 1, 2]))
    found = {fingerprint_of(Subset(data, indices)) for indices in some}
    assert len(found) == 5
    same: Any = torch.tensor([3, 1, 2])
    assert fingerprint_of(Subset(data, same)) in found
    inner = Subset(Subset(data, [5, 6, 7]), [0, 2])
    assert subset_of(fingerprint_of(inner)).count("[") == 2


@pytest.mark.parametrize("way", ["set_epoch", "skip"])
def test_an_interrupt_leaves_out_in_both_or_neither(way: str, tmp_path: Path) -> None:
    stream = rb.BatchStream((torch.arange(20),), 4, ledger=tmp_path)
    next(iter(stream))
    ledger: Any = stream._ledger
    leave_out = ledger.leave_out

    def interrupted(*arguments: Any) -> None:
        leave_out(*arguments)
        raise KeyboardInterrupt

    ledger.leave_out = interrupted
    with pytest.raises(KeyboardInterrupt):
        stream.set_epoch(1) if way == "set_epoch" else stream.skip()
    ledger.leave_out = leave_out
    assert stream.position == 4
    stream.batch_size = 8
    list(stream)
    audit = Ledger(tmp_path).audit()
    assert (audit.examples, audit.lost, audit.skipped) == (20, 0, 0)


def test_ranks_of_different_splits_are_not_alike() -> None:
    states = [{"subset": subset_of(f"abc{part}")} for part in ("[1f]", "[1f]")]
    alike(states)
    with pytest.raises(rb.SettingError, match="subset"):
        alike([*states, {"subset": subset_of("abd[2f]")}])
