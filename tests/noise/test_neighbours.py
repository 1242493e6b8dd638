"""Examples that are not independent of their neighbours."""

import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from cases import regression_job
from watched_loops import draws, train, watch


@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize("vectors", [True, False])
def test_neighbours_that_are_alike_are_noticed(alike: bool, vectors: bool) -> None:
    # Sorted by target within each batch, as length-sorted batches are.
    # With Adam, whose metrics are measured in steps of another kind.
    job, model = regression_job(), nn.Linear(5, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0)
    monitor = watch(model, optimizer)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in draws(job, 32):
            order = y[:, 0].argsort() if alike else torch.arange(32)
            place = order if vectors else (order, None)
            yield x[place], y[place]

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        train(model, optimizer, batches(), 200)
    told = [str(w.message) for w in seen if "neighbouring examples" in str(w.message)]
    assert len(told) == int(alike)
    assert monitor.read().steps > 0
