"""Random numbers are seen wherever torch draws them."""

import torch
from torch import nn

from rightbatch.coupling.random_draws import RandomDraws
from rightbatch.memory.live_bytes import LiveBytes


def test_shapes_of_random_numbers() -> None:
    layer = nn.Dropout(0.5)
    with RandomDraws() as draws:
        layer(torch.ones(3, 2)) + torch.ones(2)
        torch.rand(5)
    assert [shape for _, shape in draws.shapes if shape != (3, 2)] == [(5,)]
    assert any(shape == (3, 2) for _, shape in draws.shapes)


def test_nothing_random_is_nothing() -> None:
    layer = nn.Linear(2, 2)
    with RandomDraws() as draws:
        layer(torch.ones(1, 2))
    assert draws.shapes == []


def test_torchs_compiler_is_not_imported_for_it() -> None:
    """Its import takes seconds; torch wraps what would begin with it."""
    assert not hasattr(RandomDraws.__torch_dispatch__, "__wrapped__")
    assert hasattr(LiveBytes.__torch_dispatch__, "__wrapped__")
