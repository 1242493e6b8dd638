"""Which splits a batch may have where its examples touch each other."""

from dataclasses import replace

import pytest

import rightbatch as rb
from cases import made_up
from rightbatch.core.findings import Coupled
from rightbatch.measure.measurements import Measurements
from rightbatch.plan.choice import choose
from rightbatch.plan.laws import laws_of
from rightbatch.plan.options import candidate_batches

MANY = 100_000


def coupled(kind: Coupled, *, today: int = 8, world_size: int = 1) -> Measurements:
    found = made_up(t0=0.1, t1=1e-4, critical=1000, today=today)
    job = replace(found.job, coupled=kind, coupled_batch=today // world_size)
    return replace(
        found, job=job, machine=replace(found.machine, world_size=world_size)
    )


def test_what_is_normalised_together_stays() -> None:
    laws = laws_of(coupled("normalization"))
    assert laws.split(128, None) == (8, 16)
    assert laws.split(8, None) == (8, 1)
    assert laws.split(4, None) is None
    assert laws.split(20, None) is None
    assert candidate_batches(laws, MANY) == [8 * 2**i for i in range(8)]
    plan = rb.decide(coupled("normalization", world_size=2)).plan
    assert plan.batch_size > 8
    assert (plan.micro_batch, plan.coupled_batch) == (4, 4)
    assert plan.accumulation == plan.batch_size // 8


def test_memory_does_not_make_it_smaller() -> None:
    found = coupled("normalization")
    with pytest.raises(rb.SettingError, match="not even"):
        choose(found, memory_bytes=10_000_000 + 7 * 100_000)
    assert choose(found, memory_bytes=10_000_000 + 9 * 100_000).options


def test_a_loss_that_compares_examples_is_made_at_once() -> None:
    found = coupled("loss", today=64)
    laws = laws_of(found)
    assert laws.split(128, None) == (128, 1)
    assert laws.split(256, None) is None  # never timed at once
    assert candidate_batches(laws, MANY)[-1] == 128
    assert all(o.accumulation == 1 for o in choose(found).options)
    plan = rb.decide(found).plan
    assert plan.coupled_batch == plan.micro_batch == plan.batch_size


def test_other_jobs_are_split_as_is_fastest() -> None:
    laws = laws_of(made_up(today=8))
    assert laws.split(128, None) == (128, 1)
    assert candidate_batches(laws, MANY)[0] == 1
    assert rb.decide(made_up()).plan.coupled_batch is None
