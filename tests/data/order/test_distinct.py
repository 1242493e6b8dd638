"""Batches without a common key, and nothing lost."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from rightbatch.data.loading.stream import BatchStream
from rightbatch.data.order.distinct import Distinct


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(20, 50)), min_size=4),
    st.integers(1, 2),
    st.lists(st.integers(1, 8), min_size=1, max_size=25),
    st.integers(1, 3),
    st.integers(0, 3),
)
def test_distinct_batches_share_no_key_and_lose_nothing(
    rows: list[tuple[int, int]],
    columns: int,
    sizes: list[int],
    world: int,
    seed: int,
) -> None:
    keys = np.array(rows)[:, :columns]
    own = [set(row.tolist()) for row in keys]
    most = len(rows) // max(sum(k in one for one in own) for k in set().union(*own))
    sizes = [min(size, most) for size in sizes]
    data = (torch.arange(len(rows)),)

    def streams(ranks: int) -> list[BatchStream]:
        return [
            BatchStream(
                data, 1, order=Distinct(keys), seed=seed, rank=r, world_size=ranks
            )
            for r in range(ranks)
        ]

    made, found = streams(world), []
    for number, size in enumerate(sizes):
        if number == len(sizes) // 2:  # a state goes on, on other ranks
            state = made[-1].state_dict()
            made = streams(1)
            made[0].load_state_dict(state)
        batch = []
        for stream in made:
            stream.batch_size = size
            for micro in next(stream.steps()):
                batch += micro.indices.tolist() if micro.share else []
        assert sum(len(own[i]) for i in batch) == len(
            set().union(*(own[i] for i in batch))
        )
        found.append(sorted(batch))
    epochs = 3 + 2 * sum(sizes) // len(rows)
    order = reference.epochs(len(rows), seed, epochs)
    slow = reference.distinct_batches(order, own, sizes)
    assert found == [sorted(batch) for batch in slow]


def test_several_keys_that_stand_in_each_others_way_make_short_steps() -> None:
    triangles = np.array([[0, 1], [1, 2], [0, 2], [3, 4], [4, 5], [3, 5]])
    pairs = np.array(
        [
            [3 * n + a, 1000 + 3 * n + b]
            for n in range(40)
            for a, b in ((0, 0), (1, 0), (1, 1))
        ]
    )
    for keys, size in ((triangles, 3), (pairs, 56), (pairs, 60)):
        stream = BatchStream((torch.arange(len(keys)),), size, order=Distinct(keys))
        seen: list[int] = []
        waiting = 0
        with pytest.warns(UserWarning, match="some steps are shorter"):
            while stream.step < 300:
                for step in stream.steps():
                    (micro,) = step
                    rows = keys[micro.indices.numpy()]
                    assert len(np.unique(rows)) == rows.size
                    seen += micro.indices.tolist()
                    waiting = max(waiting, len(stream.state_dict()["extra"]))
        assert waiting <= 16 * size
        times = np.bincount(seen, minlength=len(keys))
        assert times.min() > 0.5 * times.mean()  # nobody waits for ever


def test_short_steps_are_counted() -> None:
    for seed in range(40):
        numbers = np.random.default_rng(seed)
        keys = np.stack([numbers.choice(10, 3, replace=False) for _ in range(60)])
        order = Distinct(keys)
        stream = BatchStream((torch.arange(60),), order.largest, order=order)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert len(stream) == sum(1 for _ in stream)


def test_a_jump_leaves_nobody_waiting() -> None:
    stream = BatchStream((torch.arange(40),), 4, order=Distinct(np.arange(40) // 10))
    for _ in range(3):
        list(next(stream.steps()))
    stream.set_epoch(1)
    assert stream.state_dict()["extra"] == []
    seen = [i for s in stream.steps() for m in s for i in m.indices.tolist()]
    assert len(seen) == 40
    assert np.bincount(seen).max() <= 2


def test_a_key_of_every_other_example_waits_and_does_not_pile_up() -> None:
    """Half of a batch's room: 32 of 1000 examples have the same key, B is 16."""
    keys = np.arange(1000)
    keys[:32] = -1
    stream = BatchStream((torch.arange(1000),), 16, order=Distinct(keys))
    waiting, seen = [], []
    for _ in range(20):  # epochs
        for step in stream.steps():
            (micro,) = step
            seen += micro.indices.tolist()
            assert (micro.indices < 32).sum() <= 1
            waiting.append(len(stream.state_dict()["extra"]))
    times = np.bincount(seen, minlength=1000)
    assert len(seen) >= 20_000
    assert max(waiting) <= 32
    assert (times.min(), times.max()) in ((20, 20), (19, 21), (20, 21), (19, 20))
