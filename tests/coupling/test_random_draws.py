"""Random numbers are seen wherever torch draws them."""

import torch
from torch import nn

from rightbatch.coupling.random_draws import RandomDraws


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
