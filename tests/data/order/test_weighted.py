"""Draws by weight: unbiased, or of the weighted mean."""

import numpy as np
import pytest
import torch

import rightbatch as rb


def test_weighted_draws_are_unbiased_or_of_the_weighted_objective() -> None:
    """400,000 draws: frequencies within 5 standard errors, weights undo them."""
    weights = np.array([1.0, 2.0, 3.0, 10.0])
    data = (torch.arange(4),)
    stream = rb.BatchStream(data, 400_000, order=rb.data.Weighted(weights), seed=1)
    (index,), w = next(iter(stream))
    share = np.bincount(index.numpy()) / 400_000
    expected = weights / weights.sum()
    error = np.sqrt(expected * (1 - expected) / 400_000)
    assert (np.abs(share - expected) / error).max() < 5
    means = [float((w * (index == i)).mean()) for i in range(4)]
    assert means == pytest.approx([0.25] * 4, abs=0.005)
    plain = rb.BatchStream(data, 8, order=rb.data.Weighted(weights, "weighted"))
    assert len(next(iter(plain))) == 1  # no weights
