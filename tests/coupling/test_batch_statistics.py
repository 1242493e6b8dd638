"""What normalises over the batch is seen, by whatever call."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm

import rightbatch as rb
from rightbatch.coupling.batch_statistics import (
    BatchStatistic,
    frozen,
    watched_statistics,
)


class ByFunction(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return batch_norm(x, None, None, training=True)


def seen(model: nn.Module, x: Tensor) -> list[BatchStatistic]:
    with watched_statistics(model) as statistics:
        model(x)
    return statistics


@pytest.mark.parametrize(
    ("layer", "shape", "rows", "values"),
    [
        (nn.BatchNorm1d(4), (6, 4), 6, 6),
        (nn.BatchNorm1d(4), (6, 4, 5), 6, 30),
        (nn.BatchNorm2d(4), (6, 4, 3, 3), 6, 54),
        (nn.SyncBatchNorm(4), (6, 4), 6, 6),
        (rb.coupling.SyncBatchNorm(4), (6, 4), 6, 6),
        (rb.coupling.GhostBatchNorm(4, group=3), (6, 4), 3, 3),
        (rb.coupling.GhostBatchNorm(4, group=3), (6, 4, 5), 3, 15),
        (ByFunction(), (6, 4), 6, 6),
    ],
)
def test_rows_and_values_are_those_behind_a_mean(
    layer: nn.Module, shape: tuple[int, ...], rows: int, values: int
) -> None:
    first = seen(nn.Sequential(nn.Identity(), layer), torch.randn(shape))[0]
    assert (first.layer, first.kind) == ("1", type(layer).__name__)
    assert (first.rows, first.values) == (rows, values)
    assert first.shared == ("Sync" in first.kind)


@pytest.mark.parametrize(
    "layer", [nn.BatchNorm1d(4).eval(), nn.LayerNorm(4), nn.GroupNorm(2, 4)]
)
def test_what_looks_at_each_example_is_not_among_them(layer: nn.Module) -> None:
    assert seen(nn.Sequential(layer), torch.randn(6, 4)) == []


def test_a_pass_that_fails_leaves_no_hooks() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4))
    with pytest.raises(ValueError, match="more than 1 value"):
        seen(model, torch.randn(1, 4))
    assert len(seen(model, torch.randn(2, 4))) == 1


def test_only_layers_with_running_statistics_are_frozen() -> None:
    kept, batch = nn.BatchNorm1d(4), nn.BatchNorm1d(4, track_running_stats=False)
    off = nn.BatchNorm1d(4).eval()
    with frozen(nn.Sequential(kept, batch, off)):
        assert (kept.training, batch.training, off.training) == (False, True, False)
    assert (kept.training, batch.training, off.training) == (True, True, False)
