"""Noise of pairs where a run stands, and the batch it speaks for."""

import dataclasses

import pytest
import torch

import rightbatch as rb
from rightbatch.measure.pairs import APART, measure_pairs
from rightbatch.training.run_state import RunState

SIZES = (8, 64, 256)


def seconds(batch_size: float) -> float:
    """The law of step time."""
    return 1e-3 + 1e-5 * batch_size + 5e-8 * batch_size**2


def begun(steps: int) -> RunState:
    """A run of the built-in contrastive job, after some steps."""
    run = RunState.start(rb.load_job("contrastive_digits"))
    for _ in range(steps):
        run.step()
    return run


def test_the_batch_is_told_and_the_run_stays_where_it_is() -> None:
    run = begun(60)
    before = {n: p.detach().clone() for n, p in run.network.named_parameters()}
    state = torch.get_rng_state()
    pairs = measure_pairs(run, SIZES, seconds, budget_s=5.0)
    assert pairs is not None
    assert pairs.step == 60
    assert pairs.v1.low > 0
    assert 32 < pairs.batch_size.value < 512
    assert pairs.batch_size.low < pairs.batch_size.value < pairs.batch_size.high
    for name, parameter in run.network.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None or run.steps == 60
    assert torch.equal(state, torch.get_rng_state())
    again = measure_pairs(run, SIZES, seconds, budget_s=5.0)
    assert again is not None
    assert again.v1.value == pairs.v1.value


@pytest.mark.filterwarnings("error")
def test_a_network_that_has_diverged_has_no_noise_of_pairs() -> None:
    run = begun(0)
    blunt: rb.Job = dataclasses.replace(run.job, loss=lambda m, b: m(*b, *b)[0].mean())
    for job in (run.job, blunt):  # refused by the loss; a gradient that is NaN
        run = RunState.start(job)
        for parameter in run.parameters:
            parameter.data.fill_(torch.nan)
        assert measure_pairs(run, SIZES, seconds, budget_s=5.0) is None


def test_what_does_not_fit_is_left_out() -> None:
    run = begun(0)
    assert measure_pairs(run, SIZES, seconds, budget_s=1e-3) is None
    few: rb.Job = dataclasses.replace(run.job, batch_size=8)
    few = dataclasses.replace(few, data=tuple(t[: APART * 7] for t in few.data))  # type: ignore
    assert measure_pairs(RunState.start(few), SIZES, seconds, budget_s=5.0) is None
