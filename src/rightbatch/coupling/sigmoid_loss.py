"""The sigmoid loss of image and text pairs, exact, with memory linear in the batch."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from rightbatch.core.errors import SettingError
from rightbatch.coupling.features import (
    checked_features,
    checked_number,
    no_second_derivative,
    not_finite,
    too_few,
)
from rightbatch.coupling.gather import Group, Shards, shards_of
from rightbatch.coupling.tiled_cross_entropy import Band, Table, cleared


def siglip(
    images: Float[Tensor, "examples dim"],
    texts: Float[Tensor, "examples dim"],
    *,
    scale: float | Tensor,
    bias: float | Tensor,
    process_group: Group = None,
) -> Float[Tensor, ""]:
    r"""Tells pairs from non-pairs, each entry of the table by itself.

    $$L = -\frac{1}{b} \sum_{ij} \log \sigma\big(z_{ij}
    (s\, x_i \cdot y_j + \beta)\big), \quad z_{ij} = 1 \text{ if } i = j, \text{ else }
    -1$$

    An entry's gradient needs no other entry: it is made in the forward pass, tile by
    tile. Otherwise as [info_nce][rightbatch.coupling.info_nce]: ranks, no
    normalization.

    Args:
        images: One for each example.
        texts: Theirs, in the same order.
        scale: What similarities are multiplied by; a tensor gets a gradient.
        bias: What is added to them (-10 at the start of training); a tensor gets a
            gradient.
        process_group: Whose ranks make one batch together; False: each rank's part is
            one.

    Raises:
        RightbatchError: As `info_nce` does.

    Example:
        >>> import torch, rightbatch as rb
        >>> views = torch.eye(4, 8)
        >>> print(f"{rb.coupling.siglip(views, views, scale=20.0, bias=-10.0):.6f}")
        0.000182

    References:
        Zhai et al. 2023, arXiv:2303.15343.
    """
    images, texts = checked_features(images=images, texts=texts)
    if len(images) != len(texts):
        raise SettingError(
            "each image needs one text", seen=f"{len(images)} and {len(texts)}"
        )
    shards, _ = shards_of(process_group, images, texts)
    if sum(shards.counts) < 2:
        raise too_few(sum(shards.counts))
    numbers = [
        checked_number(value, name, images)
        for name, value in {"scale": scale, "bias": bias}.items()
    ]
    return _Siglip.apply(images, shards.gather(texts), *numbers, shards)


class _Siglip(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        images: Tensor,
        texts: Tensor,
        scale: Tensor,
        bias: Tensor,
        shards: Shards,
    ) -> Tensor:
        table = Table(images, texts, scale)
        own = Band(0, len(images), shards.starts[shards.rank])
        with torch.autocast(images.device.type, enabled=False):
            matched = table.positives((own,)) + bias
            total = -logsigmoid(matched).sum()
            pull = (-matched).sigmoid()
            to_bias = -pull.sum()
            to_images = -pull[:, None] * texts[own.columns]
            to_texts = torch.zeros_like(texts)
            to_texts[own.columns] = -(pull * scale)[:, None] * images
            for rows, columns, scaled, tile in table.tiles(-bias):
                cleared(tile, rows, columns, (own,), -torch.inf)
                total -= logsigmoid(-tile).sum()
                tile.sigmoid_()
                to_bias += tile.sum()
                to_images[rows].addmm_(tile, texts[columns])
                to_texts[columns].addmm_(tile.T, scaled)
            (largest,) = shards.largest(total)
            if largest == torch.inf:
                raise not_finite(f"a loss of {float(total)}")
            to_scale = (to_images * images).sum()
            to_images *= scale
            ctx.save_for_backward(to_images, to_texts, to_scale, to_bias)
            ctx.factor = len(shards.counts) / sum(shards.counts)
            return shards.total(total) / sum(shards.counts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise no_second_derivative()
        factor = gradients[0] * ctx.factor
        return *(part * factor for part in ctx.saved_tensors), None
