"""Micro-batches by tokens: they fit the budget, lose nothing, and are random."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
import rightbatch as rb
from rightbatch.data.order.tokens import packed_runs, padded_runs


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=120),
    st.integers(50, 300),
    st.booleans(),
    st.sampled_from(["examples", "tokens"]),
    st.lists(st.integers(1, 400), min_size=1, max_size=20),
    st.integers(1, 3),
    st.one_of(st.none(), st.integers(1, 40)),
)
def test_tokens_fit_the_budget_and_lose_nothing(
    lengths: list[int],
    budget: int,
    packed: bool,
    count: Any,
    sizes: list[int],
    world: int,
    window: int | None,
) -> None:
    have = np.array(lengths)
    if count == "tokens":
        sizes = [max(s, max(lengths)) for s in sizes]
    orders = [
        rb.data.Tokens(have, budget, packed=packed, count=count, window=window)
        for _ in range(world)
    ]
    streams = [
        rb.BatchStream(
            (torch.arange(len(have)),), sizes[0], order=o, rank=r, world_size=world
        )
        for r, o in enumerate(orders)
    ]
    seen: list[int] = []
    order = reference.epochs(len(have), 0, 2)
    for size in itertools.cycle(sizes):
        for stream in streams:
            stream.batch_size = size
        parts = [list(next(stream.steps())) for stream in streams]
        assert len({len(p) for p in parts}) == 1
        micros = [m for p in parts for m in p]
        assert sum(m.share for m in micros) == pytest.approx(world)
        assert sum(m.token_share or 0.0 for m in micros) == pytest.approx(world)
        real = [m for m in micros if m.share]
        for m in real:
            mine = have[m.indices.numpy()]
            cost = mine.sum() if packed else mine.max() * len(mine)
            assert cost <= budget
        index = [i for m in real for i in m.indices.tolist()]
        if count == "examples":
            left = len(have) - len(seen) % len(have)
            assert len(index) == min(size, left)
        if count == "tokens":
            assert have[index].sum() <= size
        if window is None:  # a random batch, only sorted
            at = len(seen)
            assert sorted(index) == sorted(order[at : at + len(index)])
        seen += index
        if streams[0].epoch == 2:
            break
    assert len(seen) == 2 * len(have)
    assert sorted(seen[: len(have)]) == list(range(len(have)))


def test_packing_is_best_fit_and_padding_is_small() -> None:
    assert packed_runs([1, 2, 3, 5, 7], 8) == [[4, 0], [3, 2], [1]]
    assert padded_runs([1, 2, 3, 5, 7], 8) == [[0, 1], [2], [3], [4]]
    generator = np.random.default_rng(0)
    lengths = np.clip(generator.lognormal(5, 1, 20_000), 16, 2048).astype(int)
    waste = {}
    for packed in (False, True):
        order = rb.data.Tokens(lengths, 16_384, packed=packed, window=8192)
        stream = rb.BatchStream((torch.arange(20_000),), 5000, order=order)
        real = spent = 0
        for step in stream.steps():
            for micro in step:
                mine = lengths[micro.indices.numpy()]
                real += mine.sum()
                spent += 16_384 if packed else mine.max() * len(mine)
        waste[packed] = 1 - real / spent
    assert waste[False] < 0.06
    assert waste[True] < 0.02


def lognormal(examples: int) -> np.ndarray:
    """Lengths from 4 to 2048, 90 at the median."""
    generator = np.random.default_rng(0)
    return np.clip(generator.lognormal(4.5, 1, examples), 4, 2048).astype(int)


@pytest.mark.parametrize("packed", [False, True])
def test_a_step_of_tokens_is_a_random_batch_and_one_of_a_window_is_not(
    packed: bool,
) -> None:
    """Noise of batch means of log length: 195 batches, standard error 10 %."""
    lengths = lognormal(50_000)
    data = (torch.arange(50_000),)
    found: dict[int | None, float] = {}
    told: dict[int | None, str] = {}
    padding: dict[int | None, float] = {}
    for window in (None, 8192):
        order = rb.data.Tokens(lengths, 4096, packed=packed, window=window)
        stream = rb.BatchStream(data, 256, order=order)
        audit = rb.audit(stream, lengths=lengths)
        assert audit.length_noise is not None
        found[window], told[window] = audit.length_noise.value, str(audit)
        padding[window] = audit.padding or 0.0
    assert found[None] == pytest.approx(1, abs=0.4)
    assert "lengths are not mixed" not in told[None]
    assert found[8192] > 30
    assert padding[8192] < 0.03 < padding[None] or packed
    assert "note: lengths are not mixed" in told[8192]


@pytest.mark.parametrize("count", ["examples", "tokens"])
@pytest.mark.parametrize("window", [None, 4096])
@pytest.mark.parametrize("world", [2, 4])
def test_ranks_get_like_numbers_of_tokens(count: Any, window: Any, world: int) -> None:
    lengths = lognormal(20_000)
    size = {"examples": 256, "tokens": 32_000}[count]
    excess = []
    streams = [
        rb.BatchStream(
            (torch.arange(20_000),),
            size,
            order=rb.data.Tokens(lengths, 4096, count=count, window=window),
            rank=rank,
            world_size=world,
        )
        for rank in range(world)
    ]
    for steps in zip(*(s.steps() for s in streams), strict=True):
        tokens = [
            sum(lengths[m.indices.numpy()].sum() for m in step if m.share)
            for step in steps
        ]
        excess.append(max(tokens) / np.mean(tokens) - 1)
    assert np.mean(excess) < 0.1  # dealt in turn: 0.11 to 0.29


def test_token_shares_give_the_mean_over_all_tokens() -> None:
    lengths = np.array([3, 9, 4, 4, 8, 2, 5, 7])
    losses = [torch.rand(n) for n in lengths]
    order = rb.data.Tokens(lengths, 12)
    total = []
    for rank in range(2):
        stream = rb.BatchStream(
            (torch.arange(8),), 8, order=order, rank=rank, world_size=2
        )
        parts = [
            torch.cat([losses[i] for i in m.indices]).mean() * (m.token_share or 0.0)
            for m in next(stream.steps())
        ]
        total.append(sum(parts))
    assert sum(total) / 2 == pytest.approx(float(torch.cat(losses).mean()), rel=1e-6)


def test_steps_are_counted_where_the_batch_size_is_in_tokens() -> None:
    lengths = lognormal(3000)
    order = rb.data.Tokens(lengths, 4096, count="tokens")
    stream = rb.BatchStream((torch.arange(3000),), 9000, order=order)
    expected = len(stream)
    for number, step in enumerate(stream.steps()):
        list(step)
        if number == 4:
            assert stream.steps_left == expected - 5
            assert len(stream) == expected
    assert stream.step == expected
