"""Micro-batches as groups."""

import itertools

import pytest

from cases import regression_job
from reference import gradients, noise_by_pairs
from watched_loops import draws, perceptron, signal_and_noise, still, train, watch


@pytest.mark.parametrize("accumulation", [2, 4])
def test_micro_batches_are_groups(accumulation: int) -> None:
    job, model, batch = regression_job(), perceptron(), 12
    whole = [column[:batch] for column in job.data]
    parts = list(zip(*(column.chunk(accumulation) for column in whole), strict=True))
    losses = [(model(x) - y).square().sum() / batch for x, y in parts]
    truth = noise_by_pairs(gradients(model, losses), [len(x) for x, _ in parts])
    monitor = watch(model, optimizer := still(model))
    train(model, optimizer, [whole] * 2, 2, accumulation)  # the first step teaches
    found = monitor.read(window=1)
    assert found.source.startswith("micro-batches")
    assert found.coverage.parameters == 1.0
    assert signal_and_noise(found) == pytest.approx(truth, rel=1e-4)


def test_accumulation_of_any_kind_and_scale() -> None:
    # Scaled by 1/k or not, the last step with fewer micro-batches, then none.
    job, model = regression_job(), perceptron()
    monitor = watch(model, optimizer := still(model))
    train(model, optimizer, draws(job, 32), 6, accumulation=4)
    assert monitor.read().source.startswith("micro-batches")
    train(model, optimizer, draws(job, 16), 1, accumulation=2)
    train(model, optimizer, draws(job, 16), 4)
    found = monitor.read(window=10**6)
    # The first accumulated step, and the first that is not, only teach.
    assert found.steps == 5 + 1 + 3
    assert found.source.startswith("groups inside")
    assert found.noise_scale.low >= 0


def test_a_step_that_a_scaler_leaves_out_is_no_micro_batch() -> None:
    job, model = regression_job(), perceptron()
    monitor = watch(model, optimizer := still(model))
    for k, (x, y) in enumerate(itertools.islice(draws(job, 16), 12)):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        if k % 4 != 3:
            optimizer.step()
    assert monitor.counts.measured == 9
    assert monitor.read().source.startswith("groups inside")
