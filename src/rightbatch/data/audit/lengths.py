"""What a loader does with examples of different lengths."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from rightbatch.core.estimate import Estimate
from rightbatch.core.units import show_number
from rightbatch.data.audit.mixing import Batches, ratio_of
from rightbatch.data.audit.rules import MIXED, Concern

PADDED = 0.2  # share of padding above which we say so [assumed]
UNEVEN = 0.1  # tokens of the fullest rank above the mean's [assumed]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenAudit:
    """Padding, ranks and mixing, by tokens.

    Attributes:
        padding: Share of tokens that are padding.
        balance: By how much the rank with most tokens has more than the mean.
        noise: Noise of batch means of the logarithm of lengths, relative to random.
        size: Examples of a batch.
    """

    padding: float
    balance: float
    noise: Estimate
    size: int

    def concerns(self, ours: bool) -> list[Concern]:
        """What should be mended.

        Args:
            ours: Whether the order is `Tokens`, whose settings tell what is meant.
        """
        found = []
        if self.noise.low > MIXED:
            found.append(
                Concern(
                    what=f"lengths are not mixed: {show_number(self.noise.value)} x "
                    "the noise of random batches",
                    seen=f"variance of the mean log length of batches {self.noise}, 1 "
                    f"is ideal, {self.size} no mixing",
                    why="a step holds few lengths; where gradients depend on length, "
                    "its gradient is noisier by up to this factor",
                    fix="rightbatch.Tokens without a window, or more micro-batches "
                    "in a step",
                    note=ours,
                )
            )
        if self.padding > PADDED:
            found.append(
                Concern(
                    what=f"{self.padding:.0%} of all tokens are padding",
                    seen="longest example times number of examples, in every batch",
                    why="padding costs time and memory and teaches nothing",
                    fix="a larger batch_size, or packed=True; a window if gradients "
                    "do not depend on length"
                    if ours
                    else "order=rightbatch.Tokens(lengths, budget=...)",
                    note=ours,
                )
            )
        if self.balance > UNEVEN:
            found.append(
                Concern(
                    what="ranks have different numbers of tokens",
                    seen=f"the fullest has {self.balance:.0%} more than the mean, on "
                    "average over the steps",
                    why="the others wait for it in every step",
                    fix="a larger batch_size, or Tokens(..., count='runs')"
                    if ours
                    else "order=rightbatch.Tokens(lengths, budget=...)",
                    note=ours,
                )
            )
        return found


def token_audit(
    steps: Batches,
    ranks: list[Batches],
    parts: list[Batches],
    lengths: Int64[np.ndarray, " examples"],
    packed: bool,
) -> TokenAudit:
    """Look at the tokens of batches.

    Args:
        steps: Examples of each step, over all ranks.
        ranks: The same for each rank.
        parts: Micro-batches of each rank.
        lengths: Tokens of each example.
        packed: Whether examples are joined without padding.
    """
    batches = [lengths[b] for own in parts for b in own if len(b)]
    padded = sum(len(b) * int(b.max()) for b in batches)
    real = sum(int(b.sum()) for b in batches)
    held = np.array(
        [[lengths[b].sum() for b in step] for step in zip(*ranks, strict=False)]
    )
    mean = held.mean(1)
    excess = held.max(1)[mean > 0] / mean[mean > 0] - 1
    return TokenAudit(
        padding=1 - real / padded if padded and not packed else 0.0,
        balance=float(excess.mean()) if excess.size else 0.0,
        noise=ratio_of(steps, lambda i: np.log(np.maximum(lengths[i], 1))[:, None]),
        size=max(map(len, steps)),
    )
