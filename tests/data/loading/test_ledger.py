"""The ledger proves what was handed out, whatever happened on the way."""

import json
import multiprocessing
import random
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import feeding
import rightbatch as rb
from feeding import Numbers
from rightbatch.data.loading.ledger import Ledger, LedgerWriter


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
@pytest.mark.filterwarnings("ignore:the ledger of an earlier run")  # killed at once
@pytest.mark.parametrize("workers", [0, 2])
def test_a_process_killed_at_any_time_has_a_ledger_of_each_example_once(
    workers: int, tmp_path: Path
) -> None:
    fork = multiprocessing.get_context("fork")
    for kill in range(4):
        life = (tmp_path, 60, workers, 5 + kill)
        child = fork.Process(target=feeding.main, args=life)
        child.start()
        child.join(0.3 + 0.1 * kill if kill < 3 else 120)
        if kill < 3:
            child.kill()  # SIGKILL, with workers alive
            child.join()
    assert child.exitcode == 0
    found = Ledger(tmp_path / "ledger").audit()
    assert found.exact, str(found)
    assert found.steps == 60
    assert found.epochs >= 3


def test_the_ledger_tells_when_something_is_lost(tmp_path: Path) -> None:
    stream = rb.BatchStream((torch.arange(20),), 5, ledger=tmp_path)
    for number in range(8):
        list(next(stream.steps()))
        if number == 1:
            stream.skip(1)
    found = Ledger(tmp_path).audit()
    assert (found.exact, found.left_out, found.lost) == (True, 5, 0)
    (file,) = tmp_path.glob("segment-*.jsonl")
    rows = file.read_text().splitlines()
    file.write_text("\n".join(rows[:3] + rows[4:]) + "\n")  # a step that nobody saw
    found = Ledger(tmp_path).audit()
    assert (found.exact, found.lost, found.repeated) == (False, 5, 0)
    again = json.loads(rows[-1]) | {"step": 9}
    file.write_text("\n".join([*rows, json.dumps(again)]))
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
        for stream in streams:
            if state is not None:
                stream.load_state_dict(state)
        state = streams[0].state_dict()
        for _ in range(numbers.randint(1, 9)):
            move, size = numbers.random(), numbers.randint(1, 7)
            epoch = streams[0].epoch + 1
            for stream in streams:
                stream.batch_size = size
                if move < 0.1:
                    stream.set_epoch(epoch)
                elif move < 0.2:
                    stream.skip()
                else:
                    list(next(stream.steps()))
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


def test_a_run_begun_anew_replaces_the_earlier_ledger(tmp_path: Path) -> None:
    data = (torch.arange(20),)

    def step(rank: int, world: int, state: Any = None) -> dict[str, Any]:
        stream = rb.BatchStream(
            data, 4, ledger=tmp_path, rank=rank, world_size=world, tail="drop"
        )
        if state is not None:
            stream.load_state_dict(state)
        list(next(stream.steps()))
        return stream.state_dict()

    state = max([step(rank, 3) for rank in range(3)], key=str)
    state = max([step(rank, 2, state) for rank in range(2)], key=str)
    assert Ledger(tmp_path).audit().examples == 8
    with pytest.warns(UserWarning, match="load the state first"):
        state = step(0, 1)
    found = Ledger(tmp_path).audit()
    assert (found.examples, found.exact) == (4, True)
    step(0, 1, state)
    assert Ledger(tmp_path).audit().examples == 8


def test_the_ledger_counts_what_was_left_out_as_asked(tmp_path: Path) -> None:
    data = (torch.arange(100),)
    stream = rb.BatchStream(data, 10, ledger=tmp_path / "a")
    for _ in range(3):
        next(iter(stream))
    stream.set_epoch(1)
    state = None
    for _ in stream:
        if stream.step == 5:
            state = stream.state_dict()
    found = Ledger(tmp_path / "a").audit()
    assert (found.exact, found.left_out) == (True, 70)
    again = rb.BatchStream(data, 10, ledger=tmp_path / "a")
    assert state is not None
    again.load_state_dict(state)
    again.skip(3)  # the steps that were made are rolled back, and left out
    list(again)
    found = Ledger(tmp_path / "a").audit()
    assert (found.exact, found.left_out) == (True, 100)


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
    audit = Ledger(tmp_path).audit()
    assert (audit.exact, audit.examples, audit.left_out) == (True, 10, 0)
    assert audit.padded == 2


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


def test_a_line_that_was_broken_off_counts_for_nothing(tmp_path: Path) -> None:
    stream = rb.BatchStream((torch.arange(30),), 10, ledger=tmp_path)
    list(stream)
    (path,) = tmp_path.glob("segment-*")
    text = path.read_text()
    path.write_text(text + text[:20])  # a process was killed while it wrote
    assert Ledger(tmp_path).audit().exact
    first, *others = text.splitlines()[1:]
    path.write_text("\n".join([first[:20], *others]))
    found = Ledger(tmp_path).audit()
    assert (found.lost, found.repeated) == (10, 0)
    path.write_text("")
    with pytest.raises(rb.RunFolderError, match="no ledger here"):
        Ledger(tmp_path).audit()


@pytest.mark.parametrize("way", ["steps", "set_epoch", "skip"])
def test_an_interrupt_leaves_ledger_and_stream_of_one_mind(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C between the ledger's line and the stream's move: the step comes again."""
    stream = rb.BatchStream((torch.arange(20),), 4, ledger=tmp_path)
    next(iter(stream))
    append, fired = LedgerWriter._append, []

    def interrupted(self: LedgerWriter, row: dict[str, Any]) -> None:
        append(self, row)
        fired.append(row["start"])
        raise KeyboardInterrupt

    monkeypatch.setattr(LedgerWriter, "_append", interrupted)
    moves = {
        "steps": lambda: next(iter(stream)),
        "set_epoch": lambda: stream.set_epoch(1),
        "skip": stream.skip,
    }
    with pytest.raises(KeyboardInterrupt):
        moves[way]()
    assert fired == [4]
    monkeypatch.undo()
    assert stream.position == 4
    stream.batch_size = 8
    list(stream)
    audit = Ledger(tmp_path).audit()
    assert (audit.examples, audit.lost, audit.repeated, audit.left_out) == (20, 0, 0, 0)
