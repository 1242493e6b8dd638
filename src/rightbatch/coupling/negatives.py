"""How many negatives an anchor really has, and how often one of them is none."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rightbatch.core.errors import SettingError
from rightbatch.core.whole_number import whole_number


def effective_negatives(logits: Float[Tensor, "anchors candidates"]) -> float:
    r"""Negatives that carry the gradient: $(\sum_j e_j)^2 / \sum_j e_j^2$.

    $e_j$ is the exponential of a negative's logit. The mean over anchors of Kish's
    (1965) effective sample size. At low temperatures a few hard negatives are nearly
    all, and a larger batch brings more than its noise says.

    Args:
        logits: Similarities over temperature; pairs on the diagonal.

    Raises:
        SettingError: It is not square, or of one row.

    Example:
        >>> effective_negatives(torch.zeros(5, 5))
        4.0
    """
    logits = torch.as_tensor(logits)
    if logits.ndim != 2 or logits.shape[0] != logits.shape[1] or len(logits) < 2:
        raise SettingError(
            "logits must be square, with the pairs on the diagonal",
            seen=f"shape {tuple(logits.shape)}",
            fix="one @ other.T / temperature",
        )
    pairs = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    shares = logits.detach().double().masked_fill(pairs, -torch.inf).softmax(1)
    return float((1 / shares.square().sum(1)).mean())


def false_negative_probability(
    class_counts: Sequence[float] | Tensor, batch_size: int
) -> float:
    r"""How likely an anchor meets one of its own class among its negatives.

    $\sum_k p_k (1 - (1-p_k)^{b-1})$; the usual $1-(1-\sum_k p_k^2)^{b-1}$ is an upper
    bound of it, by Jensen's inequality.

    Args:
        class_counts: Examples of each class, or their shares.
        batch_size: Examples compared.

    Raises:
        SettingError: A count is negative, or none is positive.

    Example:
        >>> round(false_negative_probability([1.0] * 10, 8), 3)
        0.522
    """
    batch_size = whole_number(batch_size, "batch_size")
    counts = np.asarray(class_counts, float)
    if counts.ndim != 1 or not (counts >= 0).all() or not counts.sum() > 0:
        raise SettingError(
            "class_counts must hold how many examples each class has",
            seen=f"{class_counts!r}"[:70],
            fix="torch.bincount(classes)",
        )
    shares = counts / counts.sum()
    return float(shares @ (1 - (1 - shares) ** (batch_size - 1)))
