"""How noisy each stratum's gradient is, measured while training, for Neyman's rule."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from rightbatch.errors import SettingError
from rightbatch.feed.strata import Strata

MEMORY = 0.9  # weight of what was measured before, per measurement [assumed]
LEAST = 2  # examples in a stratum, to differ from each other [derived]


class StratumMeter:
    r"""Measures each stratum's gradient noise and lets `Strata` choose by it.

    From the losses of the batch in hand: two halves of a stratum give two mean
    gradients a and b, and $|a - b|^2 / (1/m_a + 1/m_b)$ is an unbiased estimate of the
    trace of the covariance of its examples' gradients. Two backward passes measure one
    stratum; strata take turns, as often as the overhead allows.

    Args:
        parameters: The model, or the parameters that are trained.
        strata: ``Strata(labels, counts="neyman")``.
        overhead: Share of the training time that measuring may take.
        clock: Seconds; what the overhead is measured with.

    Raises:
        SettingError: The counts are not chosen by Neyman's rule.

    Example:
        >>> import math, torch, rightbatch as rb
        >>> from rightbatch.feed.neyman import StratumMeter
        >>> x, y = torch.randn(1000, 2), (torch.arange(1000) % 100 == 0).float()
        >>> model = torch.nn.Linear(2, 1)
        >>> strata = rb.Strata(y, counts="neyman", multiple=2)
        >>> meter = StratumMeter(model, strata, overhead=math.inf)
        >>> stream = rb.BatchStream((x, y), batch_size=64, order=strata)
        >>> for step in stream.steps():
        ...     for micro in step:
        ...         inputs, labels = micro.data
        ...         losses = torch.nn.functional.binary_cross_entropy_with_logits(
        ...             model(inputs)[:, 0], labels, reduction="none")
        ...         meter(losses, micro.groups)          # before the backward pass
        ...         (micro.weights * losses).mean().backward()
        >>> len(meter.stds)
        2
    """

    def __init__(
        self,
        parameters: nn.Module | Iterable[Tensor],
        strata: Strata,
        overhead: float = 0.02,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if strata.rule != "neyman":
            raise SettingError(
                "measured noise has no effect on these strata",
                seen=f"counts are {strata.rule}",
                fix='Strata(labels, counts="neyman")',
            )
        if not overhead > 0:
            raise SettingError(
                "overhead leaves no time to measure", seen=f"overhead={overhead}"
            )
        if isinstance(parameters, nn.Module):
            parameters = parameters.parameters()
        self._parameters = [p for p in parameters if p.requires_grad]
        self._strata, self._overhead, self._clock = strata, overhead, clock
        count = len(strata.sizes)
        self._sums, self._weights = [0.0] * count, [0.0] * count
        self._turn, self._spent, self._began = 0, 0.0, clock()
        self.measured = 0

    @property
    def stds(self) -> list[float | None]:
        """Standard deviation of one example's gradient in each stratum; None: unknown.

        The root of the trace of the covariance.
        """
        pairs = zip(self._sums, self._weights, strict=True)
        return [(max(s, 0.0) / w) ** 0.5 if w else None for s, w in pairs]

    def __call__(
        self, losses: Float[Tensor, " batch"], groups: Int64[Tensor, " batch"]
    ) -> None:
        """Measure the next stratum, if its turn can be afforded.

        Args:
            losses: Of each example, not weighted, their graph still there.
            groups: ``micro.groups``.

        Raises:
            SettingError: Losses and groups differ in length.
        """
        if losses.shape != groups.shape:
            raise SettingError(
                "there must be one loss for each example",
                seen=f"losses {tuple(losses.shape)}, groups {tuple(groups.shape)}",
                fix='reduction="none", and one number per example',
            )
        began = self._clock()
        if self._spent > self._overhead * (began - self._began):
            return
        groups = groups.to(losses.device)
        for _ in range(len(self._sums)):
            stratum, self._turn = self._turn, (self._turn + 1) % len(self._sums)
            members = (groups == stratum).nonzero()[:, 0]
            if len(members) >= LEAST:
                self._measure(losses, members, stratum)
                break
        self._spent += self._clock() - began

    def _measure(self, losses: Tensor, members: Tensor, stratum: int) -> None:
        half = len(members) // 2
        parts = members[:half], members[half:]
        gradients = [self._gradient(losses[part].mean()) for part in parts]
        distance = sum(
            float((a - b).square().sum())
            for a, b in zip(*gradients, strict=True)
            if a is not None and b is not None
        )
        trace = distance / (1 / half + 1 / (len(members) - half))
        self._sums[stratum] = MEMORY * self._sums[stratum] + trace
        self._weights[stratum] = MEMORY * self._weights[stratum] + 1
        self.measured += 1
        known = [s for s in self.stds if s is not None]
        if len(known) == len(self._sums) and any(known):
            self._strata.observe(known)

    def _gradient(self, loss: Tensor) -> Any:
        return torch.autograd.grad(
            loss, self._parameters, retain_graph=True, allow_unused=True
        )
