"""InfoNCE and NT-Xent, exact, with memory linear in the batch, on one rank or many."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from rightbatch.core.errors import SettingError
from rightbatch.coupling.features import checked_features, checked_number, too_few
from rightbatch.coupling.gather import Group, shards_of
from rightbatch.coupling.tiled_cross_entropy import Band, Pairs, tiled_cross_entropy


def info_nce(
    queries: Float[Tensor, "examples dim"],
    keys: Float[Tensor, "keys dim"],
    *,
    scale: float | Tensor,
    two_sided: bool = True,
    process_group: Group = None,
) -> Float[Tensor, ""]:
    r"""The cross entropy of finding each query's key among all keys, and back.

    $$L = -\frac{1}{b} \sum_i \log \frac{e^{s\, q_i \cdot k_i}}
    {\sum_j e^{s\, q_i \cdot k_j}}$$

    or the mean of this and the same with queries and keys exchanged (CLIP). The table
    of similarities is never held: memory is linear in the batch. Features are taken as
    they are: normalize them first if similarities are to be cosines.

    Across ranks each passes its own part of the batch, of any size, and gets the loss
    over the whole; its gradient, after DDP's averaging, is that of one process with the
    whole batch, that of a trained ``scale`` too.

    Args:
        queries: One for each example; of any float type, computed in float32 at least.
        keys: The first are the queries' own, in their order; more of them are further
            negatives.
        scale: What similarities are multiplied by, one over the temperature; a tensor
            gets a gradient.
        two_sided: Whether keys look for their queries too.
        process_group: Whose ranks make one batch together: all, where torch's processes
            are joined. False: each rank's part is a batch of its own.

    Raises:
        SettingError: Shapes do not fit; a second derivative is asked for.
        JobError: There are fewer than two examples.
        NotFiniteError: A value is not finite.

    Example:
        >>> import torch, rightbatch as rb
        >>> images = torch.nn.functional.normalize(torch.eye(4, 8), dim=1)
        >>> print(f"{rb.coupling.info_nce(images, images, scale=10.0):.6f}")
        0.000136

    References:
        van den Oord et al. 2018, arXiv:1807.03748; Radford et al. 2021,
        arXiv:2103.00020. Tiles: Cheng et al. 2024, arXiv:2410.17243.
    """
    queries, keys = checked_features(queries=queries, keys=keys)
    if len(keys) < len(queries):
        raise SettingError(
            "a query has no key",
            seen=f"{len(queries)} queries, {len(keys)} keys",
            fix="one key for each query, in the same order; further negatives behind",
        )
    of_queries, of_keys = shards_of(process_group, queries, keys)
    examples = sum(of_queries.counts)
    if sum(of_keys.counts) < 2 or (two_sided and examples < 2):
        raise too_few(examples)
    own = Band(0, len(queries), of_keys.starts[of_keys.rank])
    pairs = Pairs(positive=(own,), columns=two_sided, terms=examples << two_sided)
    number = checked_number(scale, "scale", queries)
    every_key = of_keys.gather(keys)
    return tiled_cross_entropy(queries, every_key, number, pairs, of_queries)


def nt_xent(
    one: Float[Tensor, "examples dim"],
    other: Float[Tensor, "examples dim"],
    *,
    temperature: float | Tensor,
    two_sided: bool = True,
    process_group: Group = None,
) -> Float[Tensor, ""]:
    r"""SimCLR's loss: each view finds its twin among all other views of the batch.

    Over the $2b$ views $z$, each without itself:

    $$L = -\frac{1}{2b} \sum_i \log \frac{e^{z_i \cdot z_{i'} / \tau}}
    {\sum_{j \ne i} e^{z_i \cdot z_j / \tau}}$$

    Otherwise as [info_nce][rightbatch.coupling.info_nce]: memory, ranks, no
    normalization.

    Args:
        one: A view of each example.
        other: Another view of each, in the same order.
        temperature: What similarities are divided by; a tensor gets a gradient.
        two_sided: Whether both views look for their twins, or only ``one``.
        process_group: Whose ranks make one batch together; False: each rank's part is
            one.

    Raises:
        RightbatchError: As `info_nce` does.

    Example:
        >>> import torch, rightbatch as rb
        >>> views = torch.eye(4, 8)
        >>> print(f"{rb.coupling.nt_xent(views, views, temperature=0.1):.6f}")
        0.000272

    References:
        Chen et al. 2020, arXiv:2002.05709.
    """
    one, other = checked_features(one=one, other=other)
    if len(one) != len(other):
        raise SettingError(
            "each example needs two views", seen=f"{len(one)} and {len(other)}"
        )
    shards, of_views = shards_of(process_group, one, torch.cat([one, other]))
    examples, count = sum(shards.counts), len(one)
    if examples < 2:
        raise too_few(examples)
    views = torch.cat([one, other])
    start = of_views.starts[of_views.rank]
    twins = Band(0, count, start + count), Band(count, 2 * count, start)
    itself = Band(0, 2 * count, start)
    pairs = Pairs(
        positive=twins if two_sided else twins[:1],
        left_out=(itself,),
        terms=examples << two_sided,
    )
    scale = 1 / checked_number(temperature, "temperature", views)
    looking = views if two_sided else one
    return tiled_cross_entropy(looking, of_views.gather(views), scale, pairs, shards)
