"""Directions in the space of weights along which a loss is looked at."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from rightbatch.core.errors import SettingError, UnidentifiedError


def filter_normalised(
    parameters: Sequence[Tensor], generator: torch.Generator
) -> Float[Tensor, " d"]:
    """A random direction in which every filter moves by as much as it is long.

    Of each weight's first axis every slice is a filter; biases and norms stay (Li et
    al. 2018, arXiv:1712.09913). Otherwise a network and its rescaled twin, which
    compute the same, would look differently sharp.
    """
    if all(p.ndim < 2 for p in parameters):
        raise SettingError(
            "no weight has filters to normalise a direction by",
            seen=f"{len(parameters)} parameters, all of one axis",
            fix="trajectories instead of a model",
        )
    parts = []
    for p in parameters:
        if p.ndim < 2:
            parts.append(torch.zeros(p.numel()))
            continue
        lengths = p.detach().float().cpu().flatten(1).norm(dim=1, keepdim=True)
        random = torch.randn(p.shape, generator=generator).flatten(1)
        parts.append((random * lengths / random.norm(dim=1, keepdim=True)).flatten())
    return torch.cat(parts)


def principal(
    points: Float[Tensor, "n d"], dimensions: int
) -> tuple[Float[Tensor, "k d"], Float64[Tensor, "n k"], tuple[float, ...]]:
    """The directions that hold most of the points' scatter about their mean.

    Orthonormal directions, the points' coordinates along them, and the share of the
    whole variance that each explains; by the n x n Gram matrix, not a d x d one.
    """
    away = (points - points.mean(0)).double()
    values, vectors = torch.linalg.eigh(away @ away.T)
    values, vectors = values.flip(0)[:dimensions], vectors.flip(1)[:, :dimensions]
    whole = float(away.square().sum())
    if len(values) < dimensions or not float(values[-1]) > 1e-12 * whole:
        raise UnidentifiedError(
            f"{len(points)} points of trajectories do not span {dimensions} dimensions"
        )
    directions = (vectors.T @ away) / values.sqrt()[:, None]
    shares = tuple(float(v) / whole for v in values)
    return directions.to(points.dtype), vectors * values.sqrt(), shares
