"""Where a stream stands: positions, epochs, states, and what they refuse."""

import json
from typing import Any

import numpy as np
import pytest
import torch

import rightbatch as rb

DATA = (torch.arange(40),)


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
    stream.skip(9)
    again = rb.BatchStream(data, 10, tail="drop")
    again.load_state_dict(stream.state_dict())
    again.batch_size = 20
    assert (again.epoch, again.position, again.steps_left) == (1, 0, 5)
    epochs = [len(list(again)) for _ in range(again.epoch, 3)]
    assert (epochs, again.epoch) == ([5, 5], 3)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"dataset": (torch.arange(21),)}, "length 20 then, 21 now"),
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


def test_numpy_numbers_leave_a_state_of_plain_ones() -> None:
    stream = rb.BatchStream(DATA, 8)
    stream.set_epoch(np.int64(2))  # pyrefly: ignore[bad-argument-type]
    stream.batch_size = np.int64(7)  # pyrefly: ignore[bad-argument-type]
    json.dumps(stream.state_dict())
