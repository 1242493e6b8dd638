"""Run streams as training would: ranks side by side, crashes, resumes, changes."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import rightbatch as rb
from rightbatch.data.loading.step import MicroBatch

# torch tells of a worker's death by an error wherever Python is: also where errors are
# ignored, such as in what hypothesis does at each garbage collection.
DEATHS = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@dataclasses.dataclass
class Segment:
    """The time between two starts.

    Attributes:
        world: Ranks.
        micro: Micro-batch.
        workers: Of each rank.
        prefetch: Of each worker.
        sizes: Batch size of each step; the last ones are lost in the crash.
        lost: How many steps are made after the last state is saved.
    """

    world: int
    micro: int | None
    workers: int
    prefetch: int
    sizes: list[int]
    lost: int


def start(
    data: Any, segment: Segment, state: dict[str, Any] | None, **options: Any
) -> list[rb.BatchStream]:
    """The streams of all ranks, from a saved state."""
    more: dict[str, Any] = {"num_workers": segment.workers}
    if segment.workers:
        more["prefetch_factor"] = segment.prefetch
    streams = [
        rb.BatchStream(
            data,
            segment.sizes[0],
            rank=rank,
            world_size=segment.world,
            micro_batch=segment.micro,
            **more,
            **options,
        )
        for rank in range(segment.world)
    ]
    for stream in streams:
        if state is not None:
            stream.load_state_dict(state)
    return streams


def steps_of(stream: rb.BatchStream) -> Any:
    """Endless steps, over all epochs."""
    while True:
        yield from stream.steps()


def run(
    data: Any, segments: list[Segment], **options: Any
) -> tuple[list[list[int]], list[int], int]:
    """The examples of every step that counted, sorted; sizes asked; refills."""
    history: list[list[int]] = []
    asked: list[int] = []
    refills = 0
    state: dict[str, Any] | None = None
    for segment in segments:
        streams = start(data, segment, state, **options)
        loops = [steps_of(s) for s in streams]
        history = history[: streams[0].step]
        asked = asked[: streams[0].step]
        for number, size in enumerate(segment.sizes):
            for stream in streams:
                stream.batch_size = size
            made: list[list[MicroBatch]] = [list(next(loop)) for loop in loops]
            assert len({len(parts) for parts in made}) == 1  # as many backward passes
            shares = sum(m.share for parts in made for m in parts)
            assert abs(shares - segment.world) < 1e-6
            seen = [i for parts in made for m in parts if m.share for i in values(m)]
            history.append(sorted(seen))
            asked.append(size)
            states = [s.state_dict() for s in streams]
            assert all(s == states[0] for s in states)  # equal on all ranks
            if number < len(segment.sizes) - segment.lost:
                state = states[number % segment.world]
        for stream in streams:
            refills += stream.refills
            stream.close()
    return history, asked, refills


def values(micro: MicroBatch) -> list[int]:
    """What came out, checked against what was announced."""
    (found,) = micro.data
    assert torch.equal(found, micro.indices)
    return found.tolist()


class Numbers:
    """A map-style data set of its own indices, with a random number for each."""

    def __init__(self, length: int, delay: float = 0.0, dies_at: int = -1) -> None:
        self.length, self.delay, self.dies_at = length, delay, dies_at

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor]:
        if self.delay:
            time.sleep(self.delay)
        if index == self.dies_at and torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return index, torch.rand(())


GENERATOR = random.Random(7)  # that a module keeps


class Whispers(Numbers):
    """The same with a generator of its own; a spawned worker can import it."""

    def __getitem__(self, index: int) -> tuple[int, Any]:
        return index, GENERATOR.random() + random.random()


class Whispering:
    """Seeds it."""

    def __call__(self, seed: int) -> None:
        GENERATOR.seed(seed)


def main(folder: Path, steps: int, workers: int, size: int) -> None:
    """Train in a process that a test kills: a ledger, a state every third step."""
    data = Numbers(101, delay=0.002)
    stream = rb.BatchStream(data, size, num_workers=workers, ledger=folder / "ledger")
    saved = folder / "state.pt"
    if saved.exists():
        stream.load_state_dict(torch.load(saved))
        stream.batch_size = size
    loop = steps_of(stream)
    while stream.step < steps:
        for _ in next(loop):
            pass
        if stream.step % 3 == 0:
            torch.save(stream.state_dict(), saved.with_suffix(".part"))
            saved.with_suffix(".part").replace(saved)
    torch.save(stream.state_dict(), saved)
