"""Directions: filters keep their lengths; components are those of the dense SVD."""

import pytest
import torch
from torch import nn

from rightbatch.core.errors import SettingError, UnidentifiedError
from rightbatch.landscape.directions import filter_normalised, principal


def test_every_filter_moves_by_its_own_length() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Linear(4, 2))
    parameters = list(model.parameters())
    way = filter_normalised(parameters, torch.Generator().manual_seed(0))
    parts = way.split([p.numel() for p in parameters])
    for p, part in zip(parameters, parts, strict=True):
        if p.ndim < 2:
            assert not part.any()
            continue
        moved = part.view_as(p)
        for length, weight in zip(moved, p.detach(), strict=True):
            assert float(length.norm()) == pytest.approx(float(weight.norm()), rel=1e-5)
        assert not torch.allclose(moved, p)


def test_a_model_without_filters_has_no_direction() -> None:
    with pytest.raises(SettingError, match=r"no weight has filters"):
        filter_normalised([torch.zeros(3)], torch.Generator())


def test_components_are_those_of_the_dense_decomposition() -> None:
    points = torch.randn(7, 40, generator=torch.Generator().manual_seed(1)).double()
    directions, places, shares = principal(points, 2)
    away = points - points.mean(0)
    _, lengths, right = torch.linalg.svd(away, full_matrices=False)
    assert (directions @ right[:2].T).abs().numpy() == pytest.approx(
        torch.eye(2).numpy(), abs=1e-9
    )
    assert shares == pytest.approx((lengths[:2] ** 2 / (lengths**2).sum()).tolist())
    assert places.numpy() == pytest.approx((away @ directions.T).numpy(), abs=1e-9)


def test_two_points_span_no_plane() -> None:
    with pytest.raises(UnidentifiedError):
        principal(torch.eye(2), 2)
