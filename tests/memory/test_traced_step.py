"""Tracing costs no memory, leaves nothing behind, and says why it cannot be done."""

from __future__ import annotations

import dataclasses
import resource
import warnings

import pytest
import torch
from torch import Tensor, nn

import rightbatch as rb
from memory_jobs import Mlp, classify, job_of
from rightbatch.memory.envelope import fit_envelope
from rightbatch.memory.step import step_of
from rightbatch.memory.traced_step import UntraceableError, trace_step


@pytest.mark.parametrize("device", [None, "cpu"])
def test_a_large_model_costs_no_memory(device: str | None) -> None:
    """5 x 10^8 parameters: 2 GiB, 8 with gradients and state; traced in 64 MiB."""
    job = job_of(
        model=lambda: nn.Sequential(nn.Linear(40, 10**7), nn.Linear(10**7, 5)),
        loss=lambda m, b: m(b[0]).mean(),
        device=device,
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    law = rb.largest_batch(job, 100 * 2**30, verify=False)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024
    assert law.envelope.method == "traced at 2, 8, 32 examples"
    assert law.envelope.parameters == 4 * (46 * 10**7 + 5)


def test_for_cuda_blocks_are_rounded_and_updates_are_made_at_once() -> None:
    step = step_of(job_of())
    plain = fit_envelope(trace_step(step, (2, 4, 8)))
    cuda = fit_envelope(trace_step(step, (2, 4, 8), cuda=True))
    forced = step_of(job_of(optimizer=lambda p: torch.optim.AdamW(p, foreach=True)))
    at_once = fit_envelope(trace_step(forced, (2, 4, 8)))
    updates = [s for s in cuda.segments if "foreach" in s.operation]
    assert updates
    assert at_once.peak(64) <= cuda.peak(64) <= at_once.peak(64) + 512 * 200
    assert cuda.peak(1) > plain.peak(1)


def test_tracing_complains_in_one_error() -> None:
    step = step_of(job_of(loss=lambda m, b: m(b[0]).sum() * float(b[1].sum())))
    with (
        warnings.catch_warnings(),
        pytest.raises(UntraceableError, match="without running") as caught,
    ):
        warnings.simplefilter("error")
        trace_step(step, (2, 4, 8))
    assert "it looks into its tensors" in str(caught.value)


def test_a_step_that_takes_another_way_is_refused() -> None:
    step = step_of(
        job_of(loss=lambda m, b: classify(m, b) * (2 if len(b[0]) > 4 else 1))
    )
    twice = dataclasses.replace(
        step.job,
        loss=lambda m, b: classify(m, b).sqrt() if len(b[0]) > 4 else classify(m, b),
    )
    assert len(trace_step(step, (2, 8))) == 2
    with pytest.raises(UntraceableError, match="another batch size"):
        trace_step(step_of(twice), (2, 8))


def remembering(way: str) -> rb.Job:
    cache: dict[int, Tensor] = {}

    def masked(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        ones = cache.setdefault(0, torch.ones(1))
        return classify(model, batch) * ones[0]

    if way == "a cached mask":
        return job_of(loss=masked)
    made = Mlp()
    return job_of(model=lambda: made)


@pytest.mark.parametrize("way", ["a cached mask", "a model made once"])
def test_what_the_job_remembers_does_not_become_fake(way: str) -> None:
    from torch._subclasses.fake_tensor import FakeTensor

    job = remembering(way)
    trace_step(step_of(job), (2, 4, 8))
    model = job.make_model()
    loss = job.loss(model, tuple(t[:4] for t in job.data))
    assert not isinstance(loss, FakeTensor)
    assert not any(isinstance(p, FakeTensor) for p in model.parameters())
    assert not any(isinstance(p.grad, FakeTensor) for p in model.parameters())
