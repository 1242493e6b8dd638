"""A stream cut anywhere: nothing lost, nothing repeated, every size as asked."""

import random
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
import rightbatch as rb
from feeding import Segment, run
from rightbatch.data.loading.stream import BatchStream

DATA = (torch.arange(40),)


def segments(workers: tuple[int, ...], worlds: int) -> Any:
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
            st.lists(st.integers(1, 30), min_size=1, max_size=8),
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


@settings(deadline=None, max_examples=150)
@given(
    st.integers(1, 60),
    st.integers(0, 5),
    st.sampled_from(["keep", "drop", "carry", "pad"]),
    segments(workers=(0,), worlds=6),
)
def test_no_crash_or_change_loses_or_repeats_anything(
    length: int, seed: int, tail: str, lives: list[Segment]
) -> None:
    """Some 500 segments, 350 of them resumed: batch, micro-batch, ranks, epochs."""
    for life in lives:
        if tail == "drop":
            life.sizes = [min(s, length) for s in life.sizes]
    data = (torch.arange(length),)
    history, asked, _ = run(data, lives, seed=seed, tail=tail)
    check(length, seed, tail, history, asked)


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(segments(workers=(0, 1, 2), worlds=2))
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
    fresh = next(rb.BatchStream((torch.arange(20),), 5, micro_batch=2).steps())
    first = [m.data[0].tolist() for m in again]
    assert [m.data[0].tolist() for m in fresh] == first
    with pytest.raises(rb.SettingError, match="step 0 is over"):
        list(again)


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


def test_writing_into_what_was_handed_out_does_no_harm() -> None:
    stream = rb.BatchStream(DATA, 8)
    begin, epochs = stream.state_dict(), []
    for _ in range(2):
        stream.load_state_dict(begin)
        parts = [micro.indices for step in stream.steps() for micro in step]
        epochs.append(torch.cat(parts))
        for indices in parts:
            indices.zero_()
    assert torch.equal(*epochs)


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


def test_uneven_ranks_are_said_once() -> None:
    stream = rb.BatchStream((torch.arange(10),), 7, rank=0, world_size=2)
    with pytest.warns(UserWarning, match="different numbers of examples") as caught:
        list(stream)
        list(stream)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(rb.BatchStream((torch.arange(10),), 4, rank=0, world_size=2, tail="carry"))


def test_several_micro_batches_are_not_taken_for_one_batch() -> None:
    stream = rb.BatchStream((torch.arange(20),), 8, micro_batch=4)
    with pytest.raises(rb.SettingError, match="2 micro-batches"):
        next(iter(stream))
    assert stream.step == 0
