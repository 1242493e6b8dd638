"""Contrastive losses that hold the whole table, and published ways over ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_gather
from torch.nn.functional import cross_entropy, logsigmoid

Parameters = dict[str, Tensor]


def whole_info_nce(
    queries: Tensor, keys: Tensor, scale: Tensor | float, two_sided: bool = True
) -> Tensor:
    """By its sums; the positive apart, so that nothing cancels."""
    count = len(queries)
    table = scale * queries @ keys.T
    positives = table.diagonal()
    own = torch.eye(count, len(keys), dtype=torch.bool)
    others = table.masked_fill(own, -torch.inf)
    losses = -logsigmoid(positives - others.logsumexp(1))
    if two_sided:
        backwards = -logsigmoid(positives - others[:, :count].logsumexp(0))
        losses = (losses + backwards) / 2
    return losses.mean()


def whole_nt_xent(
    one: Tensor, other: Tensor, temperature: Tensor | float, two_sided: bool = True
) -> Tensor:
    """Each view by itself."""
    views = torch.cat([one, other])
    count, losses = len(one), []
    for index in range(len(views) if two_sided else count):
        similar = views @ views[index] / temperature
        kept = [j for j in range(len(views)) if j != index]
        twin = kept.index((index + count) % len(views))
        losses.append(cross_entropy(similar[kept], torch.tensor(twin)))
    return torch.stack(losses).mean()


def whole_siglip(
    images: Tensor, texts: Tensor, scale: Tensor | float, bias: Tensor | float
) -> Tensor:
    """Entry by entry."""
    logits = scale * images @ texts.T + bias
    signs = 2 * torch.eye(len(images), dtype=logits.dtype) - 1
    return -logsigmoid(signs * logits).sum() / len(images)


def _clip(scale: Tensor, images: Tensor, texts: Tensor, start: int = 0) -> Tensor:
    labels = torch.arange(len(images)) + start
    return cross_entropy(scale * images @ texts.T, labels)


def _gathered(features: Tensor, own_with_gradient: bool = True) -> Tensor:
    """The other ranks' features as plain numbers."""
    every = [torch.empty_like(features) for _ in range(dist.get_world_size())]
    dist.all_gather(every, features.detach())
    if own_with_gradient:
        every[dist.get_rank()] = features
    return torch.cat(every)


def open_clip_default(images: Tensor, texts: Tensor, own: Parameters) -> Tensor:
    """local_loss=False, gather_with_grad=False."""
    scale = own["logit_scale"].exp()
    images, texts = _gathered(images), _gathered(texts)
    return (_clip(scale, images, texts) + _clip(scale, texts, images)) / 2


def open_clip_gather_with_grad(
    images: Tensor, texts: Tensor, own: Parameters
) -> Tensor:
    """local_loss=False, gather_with_grad=True."""
    scale = own["logit_scale"].exp()
    images, texts = torch.cat(all_gather(images)), torch.cat(all_gather(texts))
    return (_clip(scale, images, texts) + _clip(scale, texts, images)) / 2


def open_clip_local_loss(images: Tensor, texts: Tensor, own: Parameters) -> Tensor:
    """local_loss=True, gather_with_grad=False."""
    scale, start = own["logit_scale"].exp(), dist.get_rank() * len(images)
    every_image, every_text = _gathered(images, False), _gathered(texts, False)
    found = _clip(scale, images, every_text, start)
    return (found + _clip(scale, texts, every_image, start)) / 2


def grad_cache(queries: Tensor, keys: Tensor, own: Parameters) -> Tensor:
    """The scale is in the features, whose gradient is 1/W."""
    scaled = own["logit_scale"].exp() * queries
    return _clip(torch.ones(()), _gathered(scaled), _gathered(keys))


def times_ranks(queries: Tensor, keys: Tensor) -> Tensor:
    """Own rows against all keys, gathered with gradient, and once more times W."""
    start = dist.get_rank() * len(queries)
    local = _clip(torch.tensor(10.0), queries, torch.cat(all_gather(keys)), start)
    return local * dist.get_world_size()


def waits_forever(queries: Tensor, keys: Tensor) -> Tensor:
    """A rank that fails while the others wait for it."""
    if dist.get_rank() == 1:
        raise KeyError("broken on purpose")
    return _clip(torch.tensor(10.0), queries, _gathered(keys), 0)
