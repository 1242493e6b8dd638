"""What a loss may return, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import rightbatch as rb
from rightbatch.job.loss import means_in, scalar_loss

model, batch = nn.Linear(3, 2), torch.ones(4, 3)
value = model(batch).sum()


@pytest.mark.parametrize(
    "count",
    [4, 2.5, np.int64(4), np.float32(2.5), torch.tensor(4), torch.tensor([2.5])],
)
def test_a_sum_with_any_number(count: Any) -> None:
    made, n = scalar_loss(lambda m, b: (value, count), model, batch, None)
    assert made is value or torch.equal(made, value)
    assert float(n or 0) == float(count)


@pytest.mark.parametrize(
    ("result", "what"),
    [
        ((value, model(batch)), "no count"),  # logits
        ((value, value), "no count"),  # another loss
        ((value, {"accuracy": 1.0}), "no count"),
        ((value, None), "no count"),
        ((value, True), "no count"),
        ((value, torch.tensor(True)), "no count"),
        ((value, "4"), "no count"),
        ((value, torch.arange(4)), "no count"),
        ((value, 4, 1.0), "not a scalar"),
        ([value, 4], "not a scalar"),
        ({"loss": value}, "not a scalar"),
        ((model(batch), 4), "not a scalar"),
        (0.5, "not a scalar"),
        (None, "not a scalar"),
    ],
)
def test_what_else_it_returns_is_refused(result: Any, what: str) -> None:
    with pytest.raises(rb.JobError, match=what) as refused:
        scalar_loss(lambda m, b: result, model, batch, None)
    assert "loss(model, batch) returned" in refused.value.seen
    assert "(loss.sum(), " in refused.value.fix


@pytest.mark.parametrize(
    ("first", "second", "both", "means"),
    [
        ((0.0, 3), (0.0, 4), (0.0, 7), None),  # nothing learned from, nothing told
        ((math.nan, 0), (1.2, 0.5), (math.nan, 0.5), None),
        ((6.0, 4), (5.0, 3), (11.0, 7), []),
        ((0.0, 0), (5.0, 3), (5.0, 3), []),  # a half without targets
        ((-6.0, 1.5), (5.0, 0.1), (-1.0, 1.6), []),  # weights, and losses of any sign
        ((6.0, 6), (5.0, 6), (29.0, 28), []),  # over pairs of examples
        ((6.3, 4), (5.0, 4), (12.0, 8), []),  # with random numbers in it
        ((1.2, 0.25), (1.4, 0.75), (1.3, 0.5), ["sum", "count"]),
        ((1.2, 0.0), (1.4, 0.5), (1.3, 0.25), ["sum", "count"]),
        ((1.2, 0.0), (1.4, 0.0), (1.3, 0.0), ["sum", "count"]),  # none right yet
        ((6.0, 0.5), (5.0, 0.5), (11.0, 0.5), ["count"]),
        ((6.0, 64), (5.0, 64), (11.0, 64), ["count"]),  # a constant
        ((1.2, 4), (1.4, 4), (1.3, 8), ["sum"]),
        ((-1.2, 4), (-1.4, 4), (-1.3, 8), ["sum"]),
    ],
)
def test_means_are_told_from_sums(
    first: Any, second: Any, both: Any, means: list[str] | None
) -> None:
    pairs = {(0, 4): first, (4, 8): second, (0, 8): both}
    found = means_in(lambda start, stop: pairs[start, stop], 8)
    assert (found if found is None else list(found)) == means


def test_one_example_alone_tells_nothing() -> None:
    def never(start: int, stop: int) -> tuple[float, float]:
        raise AssertionError((start, stop))

    assert means_in(never, 1) is None


def test_what_is_drawn_is_rarely_taken_for_a_mean() -> None:
    """Targets masked at random inside the loss: about five of 32 in an example."""
    random = np.random.default_rng(0)

    def pair(start: int, stop: int) -> tuple[float, float]:
        count = random.binomial(32 * (stop - start), 0.15)
        return float(random.normal(5, 1, count).sum()), float(count)

    wrong = sum(bool(means_in(pair, 2)) for _ in range(1000))
    assert wrong < 80  # without a second draw to compare with, 190
