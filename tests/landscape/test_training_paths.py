"""Trajectories: one start, the product's own steps."""

from typing import Any

import pytest
import torch

import rightbatch as rb
from cases import regression_job
from rightbatch.landscape.training_paths import trajectories


def test_a_path_is_that_of_a_plain_loop() -> None:
    job = regression_job(examples=64)
    before = torch.get_rng_state()
    small, large = trajectories(job, (16, 32), examples=128, points=4)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(small.points[0], large.points[0])
    assert (small.examples, large.examples) == ((0, 32, 64, 96, 128),) * 2
    assert (small.name, large.name) == ("B = 16, lr 0.01", "B = 32, lr 0.02")
    model = job.make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    stream = rb.BatchStream(job.data, 32, seed=job.seed, tail="carry")
    for _ in range(2):
        for x, y in stream:
            optimizer.zero_grad()
            loss: Any = job.loss(model, (x, y))
            loss.backward()
            optimizer.step()
    end = next(model.parameters()).detach().flatten()
    assert large.points[-1].numpy() == pytest.approx(end.numpy(), rel=1e-4)


def test_runs_may_diverge() -> None:
    steep = regression_job(
        optimizer=lambda params: torch.optim.SGD(params, lr=1e6), examples=64
    )
    (lost,) = trajectories(steep, (16,), examples=640, points=40)
    assert lost.diverged
    assert lost.examples[-1] < 640
