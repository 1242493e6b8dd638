"""A stream cut anywhere: nothing lost, nothing repeated, every size as asked."""

import gc
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import TensorDataset

import reference
import rightbatch as rb
from feeding import DEATHS, Numbers, Segment, run, steps_of
from rightbatch.data.loading.batch_sampler import BatchSampler
from rightbatch.data.loading.ledger import Ledger
from rightbatch.data.loading.split_ranks import deal
from rightbatch.data.loading.stream import BatchStream
from rightbatch.data.loading.workers import worker_trouble

HERE = Path(__file__).parent


def segments(workers: tuple[int, ...], worlds: int, sizes: int) -> Any:
    """Random lives of a run."""

    def make(world: int, micro: int | None, nw: int, pf: int, s: Any, lost: int) -> Any:
        return Segment(world, micro, nw, pf, s, min(lost, len(s) - 1))

    return st.lists(
        st.builds(
            make,
            st.integers(1, worlds),
            st.one_of(st.none(), st.integers(1, 12)),
            st.sampled_from(workers),
            st.sampled_from([1, 2, 4]),
            st.lists(st.integers(1, sizes), min_size=1, max_size=8),
            st.integers(0, 3),
        ),
        min_size=2,
        max_size=6,
    )


def check(
    length: int, seed: int, tail: str, history: list[list[int]], asked: list[int]
) -> None:
    """Every step is the next cut of the order, of the size asked for."""
    order = reference.epochs(length, seed, 2 + sum(asked) // length + len(asked))
    at = 0
    for seen, size in zip(history, asked, strict=True):
        left = length - at % length
        if tail == "drop" and left < size:
            at, left = at + left, length
        count = min(size, left) if tail in ("keep", "pad") else size
        expected = order[at : at + count]
        if tail == "pad":  # with what the epoch began with, again and again
            head = order[at - at % length : at - at % length + length]
            expected += (head * size)[: size - count]
        assert seen == sorted(expected)
        at += count
        if tail == "drop" and length - at % length < size:
            at += length - at % length  # by the batch in force when it was reached


@pytest.mark.filterwarnings("ignore:batch_size=.*more than once")
@settings(deadline=None, max_examples=500)
@given(
    st.integers(1, 60),
    st.integers(0, 5),
    st.sampled_from(["keep", "drop", "carry", "pad"]),
    segments(workers=(0,), worlds=8, sizes=30),
)
def test_no_crash_or_change_loses_or_repeats_anything(
    length: int, seed: int, tail: str, lives: list[Segment]
) -> None:
    """Some 1700 segments, 1200 of them resumed: batch, micro-batch, ranks, epochs."""
    for life in lives:
        if tail == "drop":
            life.sizes = [min(s, length) for s in life.sizes]
    data = (torch.arange(length),)
    history, asked, _ = run(data, lives, seed=seed, tail=tail)
    check(length, seed, tail, history, asked)


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(segments(workers=(0, 1, 2), worlds=2, sizes=30))
def test_nor_with_real_workers_fetching_ahead(lives: list[Segment]) -> None:
    history, asked, _ = run((torch.arange(40),), lives, seed=1)
    check(40, 1, "keep", history, asked)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 2, 4])
@pytest.mark.parametrize("micro", [None, 8])
def test_a_changed_batch_holds_at_the_very_next_step(
    workers: int, micro: int | None
) -> None:
    numbers = random.Random(workers)
    sizes = [numbers.choice([8, 16, 24, 40, 50]) for _ in range(60)]
    sizes = [s for s in sizes for _ in range(numbers.choice([1, 1, 2, 5]))]
    life = Segment(1, micro, workers, 2, sizes, 0)
    history, asked, refills = run((torch.arange(1000),), [life], seed=2, tail="carry")
    assert [len(seen) for seen in history] == sizes == asked
    check(1000, 2, "carry", history, asked)
    assert (refills > 0) == (workers > 0)


def test_with_micro_batches_a_change_wastes_nothing() -> None:
    """A new B is a new count: what workers have fetched ahead still serves."""
    sizes = [32] * 5 + [96] * 5 + [16] * 5 + [64] * 5
    _, _, refills = run(
        (torch.arange(100_000),), [Segment(1, 16, 2, 4, sizes, 0)], seed=2
    )
    assert refills == 0


@settings(deadline=None)
@given(
    st.integers(1, 300),
    st.integers(1, 8),
    st.one_of(st.none(), st.integers(1, 40)),
    st.sampled_from([1, 2, 3]),
)
def test_dealing_gives_everything_once_and_every_rank_as_many(
    count: int, world: int, micro: int | None, unit: int
) -> None:
    count *= unit
    hands = deal(count, world, micro, unit=unit)
    parts = [p for hand in hands for p in hand if not p.filler]
    places = sorted(i for p in parts for i in range(p.start, p.stop))
    assert places == list(range(count))
    assert len({len(hand) for hand in hands}) == 1
    assert all(p.start % unit == p.stop % unit == 0 for p in parts)
    if micro is not None:
        assert all(p.stop - p.start <= max(micro, unit) for p in parts)
    held = [sum(p.stop - p.start for p in h if not p.filler) for h in hands]
    assert max(held) - min(held) <= unit
    row = max(1, (micro or count) // unit) * world if micro else count
    rest = (count // unit) % row if micro else count // unit
    assert any(p.filler for hand in hands for p in hand) == (0 < rest < world)


@settings(deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=12), st.integers(1, 5))
def test_dealt_runs_keep_their_fences(runs: list[int], world: int) -> None:
    edges = np.cumsum(runs).tolist()
    hands = deal(edges[-1], world, None, fences=tuple(edges[:-1]) or (edges[-1],))
    parts = [p for hand in hands for p in hand if not p.filler]
    places = sorted(i for p in parts for i in range(p.start, p.stop))
    assert places == list(range(edges[-1]))
    assert len({len(hand) for hand in hands}) == 1
    for part in parts:
        assert not any(part.start < e < part.stop for e in edges)


def test_the_shares_make_the_gradient_of_the_whole_batch() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(50, 4), torch.randn(50, 1)
    weight = torch.randn(4, 1, requires_grad=True)

    def loss(batch: Any) -> torch.Tensor:
        return (batch[0] @ weight - batch[1]).square().mean()

    whole = rb.BatchStream((x, y), 23, seed=3)
    for step, batch in zip(range(3), whole, strict=False):
        (expected,) = torch.autograd.grad(loss(batch), weight)
        ranks = []
        for rank in range(4):
            stream = BatchStream(
                (x, y), 23, seed=3, rank=rank, world_size=4, micro_batch=2
            )
            stream.skip(step)
            parts = [loss(m.data) * m.share for m in next(stream.steps())]
            total = torch.stack(parts).sum()
            ranks.append(torch.autograd.grad(total, weight)[0])
        assert torch.allclose(torch.stack(ranks).mean(0), expected, atol=1e-5)


def test_length_is_exact_after_changes() -> None:
    stream = rb.BatchStream((torch.arange(100),), 10)
    assert len(stream) == 10
    made = 0
    for _ in stream:
        made += 1
        if made == 3:
            stream.batch_size = 30
            assert (len(stream), stream.steps_left) == (3 + 3, 3)  # 30, 30, 10
    assert made == 6
    assert (stream.epoch, stream.position, len(stream)) == (1, 0, 4)
    dropping = rb.BatchStream((torch.arange(100),), 30, tail="drop")
    assert len(dropping) == len(list(dropping)) == 3
    assert (dropping.epoch, dropping.step) == (1, 3)


@pytest.mark.parametrize("tail", ["keep", "drop", "carry", "pad"])
def test_a_state_of_the_last_batch_begins_the_next_epoch(tail: str) -> None:
    data = (torch.arange(20),)
    stream = rb.BatchStream(data, 7, tail=tail)
    states = [(stream.state_dict(), b) for b in stream]
    fresh = rb.BatchStream(data, 7, tail=tail)
    fresh.load_state_dict(states[-1][0])
    assert fresh.epoch == 1
    expected = [b[0].tolist() for b in stream]
    assert expected
    assert [b[0].tolist() for b in fresh] == expected


def test_padding_is_said_and_no_repeat_to_a_ledger(tmp_path: Path) -> None:
    stream = rb.BatchStream(Numbers(10), 4, tail="pad", ledger=tmp_path)
    sizes, drawn = [], {}
    for step in stream.steps():
        sizes.append((step.examples, step.repeats))
        for micro in step:
            for index, number in zip(*micro.data, strict=True):
                drawn.setdefault(int(index), []).append(float(number))
    assert sizes == [(4, 0), (4, 0), (4, 2)]
    twice = [numbers for numbers in drawn.values() if len(numbers) == 2]
    assert len(twice) == 2
    assert all(a != b for a, b in twice)  # augmented anew
    audit = Ledger(tmp_path).audit(10)
    assert (audit.exact, audit.examples, audit.dropped) == (True, 10, 0)
    assert audit.padded == 2
    sampler = BatchSampler(10, 4, tail="pad", rank=1, world_size=2)
    assert [len(batch) for batch in sampler] == [2, 2, 2]
    assert [len(batch) for batch in BatchSampler(10, 4, tail="pad")] == [4, 4, 4]
    step = next(rb.BatchStream((torch.arange(10),), 35, tail="pad").steps())
    seeds = step._plan.cut.seeds.tolist()
    list(step)
    assert len(set(seeds)) == 35


def test_padded_runs_of_tokens_keep_their_budget_and_weights() -> None:
    lengths = np.random.default_rng(0).integers(1, 50, 70)
    order = rb.data.Tokens(lengths, 100, window=16)
    stream = rb.BatchStream((torch.arange(70),), 32, order=order, tail="pad")
    for step in stream.steps():
        parts = list(step)
        assert step.examples == 32
        for micro in parts:
            own = lengths[micro.indices.numpy()]
            assert own.max() * len(own) <= 100
        assert abs(sum(m.share for m in parts) - 1) < 1e-9
        assert abs(sum(m.token_share or 0 for m in parts) - 1) < 1e-9
    assert stream.epoch == 1


class Augmented(Numbers):
    """Random numbers of all three kinds."""

    def __getitem__(self, index: int) -> Any:
        numbers = random.random(), np.random.rand(), float(torch.rand(()))
        return index, torch.tensor(numbers, dtype=torch.float64)


@pytest.mark.parametrize("workers", [0, 2])
def test_augmentation_is_the_same_after_a_resume_at_other_sizes(workers: int) -> None:
    data = Augmented(30)
    plain = rb.BatchStream(data, 30, seed=4)
    expected = {}
    for epoch in range(2):
        (index, numbers) = next(iter(plain))
        rows = zip(index.tolist(), numbers.tolist(), strict=True)
        expected |= {(epoch, i): n for i, n in rows}
    assert len({tuple(n) for n in expected.values()}) == 60  # every epoch anew
    stream = rb.BatchStream(data, 7, seed=4, num_workers=workers)
    state, found = None, {}
    for _ in stream:
        if stream.step == 2:
            state = stream.state_dict()
            break
    resumed = rb.BatchStream(data, 5, seed=4, micro_batch=3, num_workers=workers)
    assert state is not None
    resumed.load_state_dict(state)
    resumed.batch_size = 5
    before = torch.random.get_rng_state()
    for step in resumed.steps():
        for micro in step:
            rows = zip(*(m.tolist() for m in micro.data), strict=True)
            found |= {(0, i): n for i, n in rows}
    assert torch.equal(before, torch.random.get_rng_state())  # the loop's own
    assert len(found) == 16
    assert all(expected[key] == n for key, n in found.items())


def test_workers_keep_their_options_and_live_over_epochs() -> None:
    data = TensorDataset(torch.arange(40.0))
    stream = rb.BatchStream(
        data, 8, num_workers=2, worker_init_fn=_mark, prefetch_factor=3
    )
    assert sum(len(b[0]) for _ in range(3) for b in stream) == 120
    workers = stream._lookahead._loaded._workers
    assert len(workers) == 2
    assert all(w.is_alive() for w in workers)
    stream.close()
    for worker in workers:
        worker.join(5)
    assert not any(w.is_alive() for w in workers)


def test_a_stream_that_is_let_go_stops_its_workers_at_once() -> None:
    stream = rb.BatchStream((torch.arange(100),), 8, num_workers=2)
    next(iter(stream))
    workers = stream._lookahead._loaded._workers
    gc.disable()
    try:
        del stream  # no cycle that keeps it: else a later fork inherits dead workers
        for worker in workers:
            worker.join(5)
        assert not any(w.is_alive() for w in workers)
    finally:
        gc.enable()


def _mark(worker: int) -> None:
    assert worker in (0, 1)


def test_custom_collate_gets_the_examples_and_any_batch_is_allowed() -> None:
    stream = rb.BatchStream(["a", "bb", "ccc"], 2, collate_fn="-".join)
    assert sorted("-".join(stream).split("-")) == ["a", "bb", "ccc"]


@DEATHS
def test_a_worker_that_dies_leaves_the_state_intact() -> None:
    order = reference.epochs(60, 0, 1)
    data = Numbers(60, dies_at=order[33])
    stream = rb.BatchStream(data, 6, num_workers=2)
    seen: list[int] = []
    with pytest.raises(rb.JobError, match=r"(?s)worker died.*state is intact"):
        for index, _ in stream:
            seen += index.tolist()
    assert seen == order[: len(seen)]
    assert stream.position == len(seen) <= 33
    state = stream.state_dict()
    data.dies_at = -1
    resumed = rb.BatchStream(data, 6, num_workers=2)
    resumed.load_state_dict(state)
    for index, _ in resumed:
        seen += index.tolist()
    assert seen == order
    seen = seen[: stream.position]
    for index, _ in stream:  # the same stream goes on, with new workers
        seen += index.tolist()
    assert seen == order
    stream.close()
    resumed.close()


@DEATHS
def test_a_worker_that_dies_during_a_step_costs_no_second_error() -> None:
    """torch raises where the loop is; then the stream goes on at once."""
    order = reference.epochs(60, 0, 1)
    stream = rb.BatchStream(Numbers(60), 6, num_workers=2)
    seen: list[int] = []
    with pytest.raises(RuntimeError, match="killed by signal"):
        for index, _ in stream:
            seen += index.tolist()
            if len(seen) == 12:
                worker = stream._lookahead._loaded._workers[0]
                os.kill(worker.pid, signal.SIGKILL)
                time.sleep(5)  # the step
    with pytest.warns(UserWarning, match="died while the training step"):
        (index, _) = next(iter(stream))
    seen += index.tolist()
    for index, _ in stream:
        seen += index.tolist()
    assert seen == order
    stream.close()


@pytest.mark.parametrize("pause", [0.0, 0.02, 0.3])
def test_workers_that_a_ctrl_c_has_ended_are_renewed(pause: float) -> None:
    order = reference.epochs(60, 0, 1)
    stream = rb.BatchStream(Numbers(60, delay=0.005), 6, num_workers=2)
    seen: list[int] = []
    for index, _ in stream:
        seen += index.tolist()
        if len(seen) == 12:
            break
    for worker in stream._lookahead._loaded._workers:
        os.kill(worker.pid, signal.SIGINT)  # as the terminal does
    time.sleep(pause)
    for index, _ in stream:
        seen += index.tolist()
    assert seen == order
    stream.close()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError("DataLoader worker (pid 3) exited unexpectedly"), "died"),
        (
            RuntimeError("DataLoader worker (pid 3) is killed by signal: Killed."),
            "died",
        ),
        (RuntimeError("DataLoader timed out after 3 seconds"), "did not answer"),
        (EOFError(), "died"),
        (ConnectionResetError(104, "Connection reset by peer"), "died"),
        (FileNotFoundError(2, "No such file or directory"), "died"),  # its socket
        (FileNotFoundError("Caught FileNotFoundError in DataLoader worker"), None),
        (RuntimeError("Caught RuntimeError in DataLoader worker process 0."), None),
        (RuntimeError("something of the user's own"), None),
        (KeyboardInterrupt(), None),
    ],
)
def test_what_a_dead_worker_raises_is_told_from_what_data_raise(
    error: BaseException, told: str | None
) -> None:
    trouble = worker_trouble(error)
    assert (trouble is None) == (told is None)
    assert told is None or told in str(trouble)


class Quits(Numbers):
    """A library that ends the process."""

    def __getitem__(self, index: int) -> Any:
        if index == 5 and torch.utils.data.get_worker_info() is not None:
            os._exit(0)
        return super().__getitem__(index)


def test_workers_that_quit_again_and_again_are_told() -> None:
    stream = rb.BatchStream(Quits(16), 4, order="sequential", num_workers=1)
    with pytest.raises(rb.JobError, match="a data worker died"):
        list(stream)
    assert stream.position <= 4


class Slow(Numbers):
    """A worker that stands still."""

    def __getitem__(self, index: int) -> Any:
        if torch.utils.data.get_worker_info() is not None:
            time.sleep(30)
        return index


def test_a_worker_that_stands_still_is_told() -> None:
    stream = rb.BatchStream(Slow(8), 4, num_workers=1, timeout=0.3)
    with pytest.raises(rb.JobError, match="did not answer in time"):
        next(iter(stream))
    assert stream.position == 0


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


@pytest.mark.parametrize("workers", [0, 2])
def test_a_process_killed_at_any_time_has_a_ledger_of_each_example_once(
    workers: int, tmp_path: Path
) -> None:
    for kill in range(4):
        command = [sys.executable, str(HERE / "feeding.py"), str(tmp_path)]
        command += ["60", str(workers), str(5 + kill)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            if kill < 3:
                try:
                    child.wait(0.15 + 0.05 * kill)
                except subprocess.TimeoutExpired:
                    child.kill()  # SIGKILL, with workers alive
            else:
                assert child.wait(120) == 0
    found = Ledger(tmp_path / "ledger").audit(101)
    assert found.exact, str(found)
    assert found.steps == 60
    assert found.segments >= 2
    assert found.epochs >= 3


def test_the_ledger_tells_when_something_is_lost(tmp_path: Path) -> None:
    stream = rb.BatchStream((torch.arange(20),), 5, ledger=tmp_path)
    for number, _ in enumerate(steps_of(stream)):
        list(_)
        if number == 1:
            stream.skip(1)
        if number == 7:
            break
    found = Ledger(tmp_path).audit()
    assert (found.exact, found.skipped, found.lost) == (True, 5, 0)
    (file,) = tmp_path.glob("segment-*.jsonl")
    rows = file.read_text().splitlines()
    file.write_text("\n".join(rows[:3] + rows[4:]) + "\n")  # a step that nobody saw
    found = Ledger(tmp_path).audit()
    assert (found.exact, found.lost, found.repeated) == (False, 5, 0)
    file.write_text("\n".join([*rows, rows[-1]]) + "\n")
    found = Ledger(tmp_path).audit()
    assert (found.exact, found.lost, found.repeated) == (False, 0, 5)


def lives(folder: Path, tail: str, order: Any, seed: int, world: int) -> Ledger:
    """Random lives of streams with a ledger: every kind of move, every resume."""
    numbers = random.Random(seed)
    data = (torch.arange(20),)
    state = None
    for _ in range(4):
        micro = numbers.choice([None, 2])
        streams = [
            rb.BatchStream(
                data,
                3,
                order=order(),
                tail=tail,
                rank=rank,
                world_size=world,
                ledger=folder,
                micro_batch=micro,
            )
            for rank in range(world)
        ]
        loops = [steps_of(s) for s in streams]
        for stream in streams:
            if state is not None:
                stream.load_state_dict(state)
        state = streams[0].state_dict()
        for _ in range(numbers.randint(1, 9)):
            move, size = numbers.random(), numbers.randint(1, 7)
            epoch = streams[0].epoch + 1
            for n, stream in enumerate(streams):
                stream.batch_size = size
                if move < 0.1:
                    stream.set_epoch(epoch)
                elif move < 0.2:
                    stream.skip()
                else:
                    list(next(stream.steps()))
                    continue
                loops[n] = steps_of(stream)
            if numbers.random() < 0.6:
                state = streams[-1].state_dict()
    return Ledger(folder)


@pytest.mark.parametrize("tail", ["keep", "drop", "carry", "pad"])
@pytest.mark.parametrize("tokens", [False, True])
def test_the_ledger_of_any_life_is_exact(
    tail: str, tokens: bool, tmp_path: Path
) -> None:
    """60 lives of four segments: skips, jumps, tails, resumes from older states."""

    def order() -> Any:
        return rb.data.Tokens(1 + np.arange(20) % 9, 20) if tokens else "shuffled"

    for seed in range(60):
        found = lives(tmp_path / str(seed), tail, order, seed, 1 + seed % 3).audit()
        assert found.exact, (seed, str(found))
        assert found.earlier == 0


def test_a_run_begun_anew_keeps_the_earlier_ledger(tmp_path: Path) -> None:
    data = (torch.arange(20),)
    for stream in (
        rb.BatchStream(data, 5, ledger=tmp_path),
        rb.BatchStream(data, 4, ledger=tmp_path),
    ):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            next(iter(stream))
    assert "load the state first" in str(caught[0].message)
    found = Ledger(tmp_path).audit()
    assert (found.examples, found.earlier) == (4, 1)
    assert "1 earlier runs begun anew" in str(found)
    kept = Ledger(tmp_path / "earlier-1").audit()
    assert (kept.examples, kept.exact) == (5, True)


def test_earlier_runs_of_several_segments_and_ranks_stay_together(
    tmp_path: Path,
) -> None:
    data = (torch.arange(20),)

    def run(segments: int, world: int) -> None:
        state = None
        for _ in range(segments):
            streams = [
                rb.BatchStream(data, 4, ledger=tmp_path, rank=rank, world_size=world)
                for rank in range(world)
            ]
            for stream in streams:
                if state is not None:
                    stream.load_state_dict(state)
                list(next(stream.steps()))
            state = streams[0].state_dict()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for segments, world in ((3, 2), (1, 1), (2, 3)):
            run(segments, world)
    found = Ledger(tmp_path).audit()
    assert (found.examples, found.segments, found.earlier) == (8, 2, 2)
    for number, (examples, segments) in enumerate(((12, 3), (4, 1)), 1):
        kept = Ledger(tmp_path / f"earlier-{number}").audit()
        assert (kept.examples, kept.segments, kept.exact) == (examples, segments, True)


def test_a_ledger_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(rb.RunFolderError, match="cannot make the ledger"):
        rb.BatchStream((torch.arange(9),), 3, ledger=tmp_path / "file" / "ledger")


def test_the_ledger_counts_what_was_left_out_as_asked(tmp_path: Path) -> None:
    data = (torch.arange(100),)
    stream = rb.BatchStream(data, 10, ledger=tmp_path / "a")
    for number, _ in enumerate(stream):
        if number == 2:
            break
    stream.set_epoch(1)
    state = None
    for _ in stream:
        if stream.step == 5:
            state = stream.state_dict()
    found = Ledger(tmp_path / "a").audit()
    assert (found.exact, found.skipped, found.dropped) == (True, 70, 0)
    again = rb.BatchStream(data, 10, ledger=tmp_path / "a")
    assert state is not None
    again.load_state_dict(state)
    again.skip(3)  # the steps that were made are rolled back, and left out
    for _ in again:
        pass
    found = Ledger(tmp_path / "a").audit()
    assert (found.exact, found.skipped, found.rolled_back) == (True, 100, 8)
    for seed in range(60):  # the largest index may be in no batch
        folder = tmp_path / str(seed)
        stream = rb.BatchStream(
            (torch.arange(10),), 4, tail="drop", seed=seed, ledger=folder
        )
        for _ in stream:
            pass
        found = Ledger(folder).audit()
        assert (found.lost, found.dropped, found.epochs) == (0, 2, 1)


def test_a_step_can_be_rolled_back_within_its_loop() -> None:
    stream = rb.BatchStream((torch.arange(20),), 5)
    seen, state = [], stream.state_dict()
    for (x,) in stream:
        seen.append(x.tolist())
        if len(seen) == 1:
            stream.load_state_dict(state)  # the loss was not finite: once more
        state = stream.state_dict()
    assert len(seen) == 5
    assert seen[0] == seen[1]


def test_a_step_is_handed_out_once() -> None:
    stream = rb.BatchStream((torch.arange(20),), 5, micro_batch=2)
    steps = stream.steps()
    step = next(steps)
    left = iter(step)  # left in the middle: not counted
    next(left)
    with pytest.raises(rb.SettingError, match="not gone through"):
        next(steps)
    again = next(stream.steps())
    first = [m.data[0].tolist() for m in again]
    assert [
        m.data[0].tolist()
        for m in rb.BatchStream((torch.arange(20),), 5, micro_batch=2)._micro_batches(
            again._plan
        )
    ] == first
    with pytest.raises(rb.SettingError, match="step 0 is over"):
        list(again)


def test_replacement_and_poisson_have_their_own_statistics() -> None:
    """2000 steps of 20 from 100: counts of an example have the binomial's variance."""
    data = (torch.arange(100),)
    for order in ("replacement", "poisson"):
        stream = rb.BatchStream(data, 20, order=order, seed=1)
        counts, sizes, factors = np.zeros(100), [], []
        for _ in range(400):
            for step in stream.steps():
                (micro,) = step
                sizes.append(len(micro.indices))
                factors.append(micro.share)
                counts += np.bincount(micro.indices.numpy(), minlength=100)
                if order == "poisson":
                    assert len(set(micro.indices.tolist())) == len(micro.indices)
        draws = sum(sizes)
        assert len(sizes) == 2000
        expected = draws / 100
        # Chi-squared with 99 degrees of freedom: 50 to 160 for all but one in 10^4.
        kept = 0.8 if order == "poisson" else 1.0
        assert 50 < ((counts - expected) ** 2 / expected).sum() / kept < 160
        if order == "poisson":
            assert abs(np.mean(sizes) - 20) < 0.4  # standard error 0.09
            assert abs(np.var(sizes) - 16) < 2.5  # standard error 0.5
            assert factors == pytest.approx([s / 20 for s in sizes])
            small = rb.BatchStream(data, 1, order="poisson", seed=1)
            shares = [m.share for _ in range(60) for s in small.steps() for m in s]
            # Of 6000 steps of one example on average: standard error 0.01.
            assert abs(np.mean(shares) - 1) < 0.04
        else:
            assert set(sizes) == {20}


def test_ranks_without_examples_get_a_filler_of_no_weight() -> None:
    made = []
    for rank in range(4):
        stream = rb.BatchStream((torch.arange(10),), 8, rank=rank, world_size=4)
        made.append([next(iter(s)) for s in stream.steps()])
    last = [parts[1] for parts in made]
    assert [len(m.indices) for m in last] == [1, 1, 1, 1]
    assert [m.share for m in last] == [0, 2, 2, 0]  # the turn of the second step


def test_uneven_ranks_are_said_once() -> None:
    stream = rb.BatchStream((torch.arange(10),), 7, rank=0, world_size=2)
    with pytest.warns(UserWarning, match="different numbers of examples") as caught:
        list(stream)
        list(stream)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(rb.BatchStream((torch.arange(10),), 4, rank=0, world_size=2, tail="carry"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dataset": ()}, "common first axis"),
        ({"dataset": (torch.arange(0),)}, "empty"),
        ({"dataset": []}, "empty"),
        ({"dataset": iter([1])}, "cannot be read by number"),
        ({"batch_size": 0}, "at least 1"),
        ({"batch_size": 2.0}, "integer"),
        ({"batch_size": 21, "tail": "drop"}, "drop every batch"),
        ({"shuffle": True}, 'order="shuffled"'),
        ({"drop_last": True}, 'tail="drop"'),
        ({"persistent_workers": True}, "workers persist"),
        ({"tail": "cut"}, "keep, drop, carry, pad"),
        ({"tail": "drop", "order": "replacement"}, "no effect"),
        ({"order": "random"}, "shuffled, sequential"),
        ({"rank": 2, "world_size": 2}, "not below world_size"),
        ({"micro_batch": 0}, "at least 1"),
        ({"seed": -1}, "at least 0"),
        ({"order": rb.data.Strata([0, 1])}, "another data set"),
        ({"order": "poisson", "batch_size": 21}, "more than the 20"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    arguments: dict[str, Any], message: str
) -> None:
    settings: dict[str, Any] = {"dataset": (torch.arange(20),), "batch_size": 5}
    with pytest.raises(rb.SettingError, match=message):
        rb.BatchStream(**settings | arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"worker_init_fn": print}, "worker_init_fn has no effect"),
        ({"timeout": 3}, "timeout has no effect"),
        ({"multiprocessing_context": "spawn"}, "multiprocessing_context has no effect"),
        ({"batch_size": 30, "tail": "carry"}, "more than once"),
    ],
)
def test_settings_without_effect_or_with_a_price_are_said(
    arguments: dict[str, Any], message: str
) -> None:
    settings: dict[str, Any] = {"dataset": (torch.arange(20),), "batch_size": 5}
    with pytest.warns(UserWarning, match=message):
        rb.BatchStream(**settings | arguments)


def test_a_stream_says_where_it_stands() -> None:
    stream = rb.BatchStream((torch.arange(20),), 6, rank=1, world_size=2)
    list(next(stream.steps()))
    assert repr(stream) == (
        "BatchStream(20 examples, batch_size=6, order 'shuffled', rank 1 of 2: "
        "epoch 0, 6 examples behind)"
    )
    assert (stream.rank, stream.world_size, stream.num_workers) == (1, 2, 0)


def test_a_larger_batch_after_a_resume_begins_the_next_epoch() -> None:
    """The tail that no longer fits is behind: epoch, position and len agree."""
    data = (torch.arange(100),)
    stream = rb.BatchStream(data, 10, tail="drop")
    while stream.position < 90:
        list(next(stream.steps()))
    again = rb.BatchStream(data, 10, tail="drop")
    again.load_state_dict(stream.state_dict())
    again.batch_size = 20
    assert (again.epoch, again.position, again.steps_left) == (1, 0, 5)
    epochs = [len(list(again)) for _ in range(again.epoch, 3)]
    assert (epochs, again.epoch) == ([5, 5], 3)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"dataset": (torch.arange(21),)}, "20 examples then, 21 now"),
        ({"seed": 1}, "another seed"),
        ({"order": "sequential"}, "another order"),
        ({"fingerprint": "b"}, "another data set"),
    ],
)
def test_a_state_of_something_else_is_refused(
    other: dict[str, Any], message: str
) -> None:
    settings: dict[str, Any] = {
        "dataset": (torch.arange(20),),
        "batch_size": 5,
        "fingerprint": "a",
    }
    state = rb.BatchStream(**settings).state_dict()
    stream = rb.BatchStream(**settings | other)
    with pytest.raises(rb.SettingError, match=message):
        stream.load_state_dict(state)
    with pytest.raises(rb.SettingError, match="no state"):
        stream.load_state_dict({"epoch": 1})
    assert (stream.epoch, stream.position) == (0, 0)


def test_several_micro_batches_are_not_taken_for_one_batch() -> None:
    stream = rb.BatchStream((torch.arange(20),), 8, micro_batch=4)
    with pytest.raises(rb.SettingError, match="2 micro-batches"):
        next(iter(stream))
    assert stream.step == 0


def test_prefetch_without_workers_is_said() -> None:
    with pytest.warns(UserWarning, match="no effect without num_workers"):
        rb.BatchStream((torch.arange(20),), 8, prefetch_factor=2)
