"""Effective and false negatives against counting."""

import pytest
import torch

import rightbatch as rb
from rightbatch.coupling.negatives import (
    effective_negatives,
    false_negative_probability,
)


def test_effective_negatives_by_the_formula() -> None:
    logits = torch.randn(7, 7, generator=torch.Generator().manual_seed(0)).double()
    counts = []
    for i in range(7):
        weights = torch.stack([logits[i, j].exp() for j in range(7) if j != i])
        counts.append(weights.sum() ** 2 / weights.square().sum())
    wanted = float(torch.stack(counts).mean())
    assert effective_negatives(logits) == pytest.approx(wanted)
    assert effective_negatives(logits + 800) == pytest.approx(wanted)


def test_one_hard_negative_is_all() -> None:
    logits = torch.zeros(4, 4)
    logits[:, 0], logits[0, 1] = 100, 100
    assert effective_negatives(logits) == pytest.approx(1)


def test_false_negatives_as_drawn() -> None:
    """20,000 batches, seed 0: within four standard deviations."""
    torch.manual_seed(0)
    shares = torch.tensor([0.5, 0.3, 0.15, 0.05])
    drawn = torch.multinomial(shares, 20_000 * 6, replacement=True).view(-1, 6)
    met = (drawn[:, 1:] == drawn[:, :1]).any(1).double().mean()
    wanted = false_negative_probability([50, 30, 15, 5], 6)
    assert wanted == pytest.approx(float(met), abs=4 * 0.5 / 20_000**0.5)
    assert wanted < 1 - (1 - float(shares.square().sum())) ** 5


def test_what_cannot_be_counted_is_refused() -> None:
    assert effective_negatives(torch.zeros(3, 3).numpy()) == 2.0  # pyrefly: ignore
    with pytest.raises(rb.SettingError, match="square"):
        effective_negatives(torch.zeros(3, 4))
    with pytest.raises(rb.SettingError, match="how many examples"):
        false_negative_probability([-1, 2], 4)
