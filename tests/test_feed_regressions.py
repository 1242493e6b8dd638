"""What a hostile reader found, each once."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    TensorDataset,
)

import rightbatch as rb
from rightbatch.data.loading.batch_sampler import BatchSampler
from rightbatch.data.order.allocation import allot
from rightbatch.data.order.neyman import StratumMeter

DATA = (torch.arange(40),)


def rare(stream: Any) -> int:
    return int(next(iter(stream))[1].lt(1).sum())  # those of weight below 1


def test_noise_observed_after_the_last_step_is_in_the_state() -> None:
    y = torch.arange(1000) % 10 == 0
    strata = rb.data.Strata(y, "neyman")
    stream = rb.BatchStream((y,), 50, order=strata)
    next(iter(stream))
    strata.observe([1.0, 9.0])
    early = stream.state_dict()
    json.dumps(early)
    expected = next(iter(stream))[0][0]
    other = rb.BatchStream((y,), 50, order=rb.data.Strata(y, "neyman"))
    other.load_state_dict(early)
    assert torch.equal(next(iter(other))[0][0], expected)
    strata.observe([1.0, 27.0])
    next(iter(stream))
    stream.load_state_dict(early)  # back, in the same process
    assert torch.equal(next(iter(stream))[0][0], expected)


def test_two_copies_of_an_example_are_augmented_differently() -> None:
    class Augmented:
        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> torch.Tensor:
            return torch.rand(())

    order = rb.data.Pairs([0], small="repeat")
    first, second = next(iter(rb.BatchStream(Augmented(), 2, order=order))).tolist()
    assert first != second


def test_a_meter_leaves_out_what_is_not_finite_and_can_be_saved() -> None:
    y = torch.tensor([0] * 90 + [1] * 10)
    strata = rb.data.Strata(y, "neyman")
    assert strata.counts_at(20).tolist() == [18, 2]  # two can be measured
    weight = torch.ones(1, requires_grad=True)
    meter = StratumMeter([weight], strata, math.inf)
    groups = torch.tensor([0, 0, 1, 1])
    x = torch.tensor([1.0, 2.0, 3.0, 7.0])
    for call in range(20):
        scale = math.inf if call == 9 else 1.0
        meter(weight * x * scale, groups)
    assert meter.stds == pytest.approx([0.5**0.5, 8**0.5])
    other = StratumMeter([weight], strata)
    other.load_state_dict(json.loads(json.dumps(meter.state_dict())))
    assert other.stds == meter.stds
    with pytest.raises(rb.SettingError, match="other strata"):
        other.load_state_dict({"sums": [1.0]})


def test_a_stratum_that_cannot_be_measured_is_named() -> None:
    strata = rb.data.Strata(["common"] * 90 + ["rare"] * 10, "neyman")
    weight = torch.ones(1, requires_grad=True)
    meter = StratumMeter([weight], strata, math.inf)
    groups = torch.tensor([0, 0, 0, 1])
    with pytest.warns(UserWarning, match="strata rare never have two"):
        for _ in range(10):
            meter(weight * torch.tensor([1.0, 2.0, 3.0, 7.0]), groups)


def test_multiples_are_given_up_where_they_do_not_fit() -> None:
    assert allot(np.ones(2), 24, np.array([15, 15]), 8).tolist() == [12, 12]
    with pytest.raises(rb.SettingError, match="no effect on fixed"):
        rb.data.Strata([0] * 9 + [1] * 9, {1: 8}, multiple=8)
    with pytest.raises(rb.SettingError, match=r"batch_size from 9 to 11"):
        rb.BatchStream(
            (torch.arange(13),), 13, order=rb.data.Strata([0] * 3 + [1] * 10, {1: 8})
        )


def test_a_state_of_other_units_is_refused() -> None:
    lengths = np.full(40, 3)
    tokens = rb.BatchStream(DATA, 20, order=rb.data.Tokens(lengths, 9, count="tokens"))
    examples = rb.BatchStream(DATA, 20, order=rb.data.Tokens(lengths, 9))
    with pytest.raises(rb.SettingError, match="composition"):
        examples.load_state_dict(tokens.state_dict())
    assert tokens  # a stream is true, though nobody knows how many steps it has


def test_good_loaders_are_not_complained_of() -> None:
    data = TensorDataset(torch.arange(1000))
    generator = torch.Generator().manual_seed(0)
    good: list[Any] = [
        DataLoader(data, 50, shuffle=True, generator=generator),
        DataLoader(data, batch_sampler=BatchSampler(1000, 50)),
        DataLoader(data, batch_size=None, sampler=BatchSampler(1000, 50)),
        rb.BatchStream(data, 48, tail="carry"),
        rb.BatchStream(data, 48, tail="drop"),
        rb.BatchStream(data, 48, order="replacement"),
    ]
    half = rb.BatchStream(data, 50)
    next(iter(half))
    good.append(half)
    lengths = np.random.default_rng(0).integers(1, 100, 1000)
    for rank in (0, 1):
        order = rb.data.Tokens(lengths, 400, window=500)
        good.append(rb.BatchStream(data, 64, order=order, rank=rank, world_size=2))
    for loader in good:
        found = rb.audit(loader, lengths=lengths if loader in good[-2:] else None)
        assert found, str(found)
    assert torch.equal(
        generator.get_state(), torch.Generator().manual_seed(0).get_state()
    )
    ranks = rb.audit(
        DataLoader(data, batch_size=None, sampler=DistributedSampler(data, 3, 0))
    )
    assert (ranks.lost, ranks.repeated) == (0, 2)


def test_an_audit_of_a_huge_stream_takes_no_memory_of_its_length() -> None:
    class Huge:
        def __len__(self) -> int:
            return 10**12

        def __getitem__(self, index: int) -> int:
            return index

    assert rb.audit(rb.BatchStream(Huge(), 64), examples=10_000)
    with pytest.raises(rb.SettingError, match="one of the labels for each"):
        rb.audit(rb.BatchStream(DATA, 8), labels=[0, 1])


def test_neyman_without_observations_is_said_once() -> None:
    y = [0] * 900 + [1] * 100
    stream = rb.BatchStream((torch.tensor(y),), 5, order=rb.data.Strata(y, "neyman"))
    with pytest.warns(UserWarning, match="no noise of the strata") as told:
        list(stream)
    assert len(told) == 1
    observed = rb.data.Strata(y, "neyman")
    observed.observe([1.0, 2.0])
    list(rb.BatchStream((torch.tensor(y),), 5, order=observed))
    list(rb.BatchStream((torch.tensor(y),), 5, order=rb.data.Strata(y)))
