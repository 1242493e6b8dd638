"""What would still touch without BatchNorm is seen; the model stays as it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cases import regression_job
from rightbatch.coupling.batch_norm_alone import batch_norm_alone
from rightbatch.coupling.ghost_norm import GhostBatchNorm


class Centred(nn.Module):
    """Takes the mean over the batch off while training, and is no BatchNorm."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0) if self.training else x


class Doubled(nn.BatchNorm1d):
    """With a forward pass of its own."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


@pytest.mark.parametrize(
    ("layers", "alone"),
    [
        ([lambda: nn.BatchNorm1d(5)], True),
        ([lambda: nn.BatchNorm1d(5, track_running_stats=False)], True),
        ([lambda: nn.BatchNorm1d(5), Centred], False),
        ([lambda: Doubled(5)], False),
        ([lambda: nn.SyncBatchNorm(5)], False),
        ([lambda: GhostBatchNorm(5, 4)], False),
        ([], False),
    ],
)
def test_only_plain_batchnorm_counts(layers: list[Any], alone: bool) -> None:
    def make() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(*(layer() for layer in layers), nn.Linear(5, 1))

    job = regression_job(examples=256, batch_size=8, model=make)
    model = job.make_model()
    before, state = list(model.modules()), model.state_dict()
    numbers = [t.clone() for t in state.values()]
    assert batch_norm_alone(job, model) == alone
    assert list(model.modules()) == before
    assert all(map(torch.equal, numbers, model.state_dict().values()))
