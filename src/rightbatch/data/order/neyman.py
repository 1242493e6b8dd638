"""How noisy each stratum's gradient is, measured while training, for Neyman's rule."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int64
from torch import Tensor, nn

from rightbatch.core.errors import SettingError
from rightbatch.data.order.strata import Strata

MEMORY = 0.9  # weight of what was measured before, per measurement [assumed]
FIRST = 3  # call that is measured first: the steps before it warm up [assumed]
LEAST = 2  # examples in a stratum, to differ from each other [derived]
# Measurements of each stratum, and of all, that are made at once, whatever they cost:
# counts should not stay a guess for long. [assumed]
ROUNDS, MOST_AT_ONCE = 2, 32


class StratumMeter:
    r"""Measures each stratum's gradient noise and lets `Strata` choose by it.

    From the losses of the batch in hand: two halves of a stratum give two mean
    gradients a and b, and $|a - b|^2 / (1/m_a + 1/m_b)$ is an unbiased estimate of the
    trace of the covariance of its examples' gradients. Two backward passes measure one
    stratum; strata take turns, as often as the overhead allows. Measurements that are
    not finite (overflow) are left out. What was measured travels with the state of the
    stream; after a resume the strata are measured anew.

    Args:
        parameters: The model, or the parameters that are trained.
        strata: ``Strata(labels, counts="neyman")``.
        overhead: Share of the training time that measuring may take, after the first
            two rounds.
        clock: Seconds; what the overhead is measured with.

    Raises:
        SettingError: The counts are not chosen by Neyman's rule.

    Example:
        >>> import math, torch, rightbatch as rb
        >>> x, y = torch.randn(1000, 2), (torch.arange(1000) % 100 == 0).float()
        >>> model = torch.nn.Linear(2, 1)
        >>> strata = rb.data.Strata(y, counts="neyman", multiple=2)
        >>> meter = rb.data.StratumMeter(model, strata, overhead=math.inf)
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

    References:
        Zhao and Zhang 2014, arXiv:1405.3080; Neyman 1934, "On the two different
        aspects of the representative method".
    """

    def __init__(
        self,
        parameters: nn.Module | Iterable[Tensor],
        strata: Strata,
        overhead: float = 0.02,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if not isinstance(strata, Strata):
            raise SettingError(
                "a meter is made for strata",
                seen=f"a {type(strata).__name__}",
                fix='StratumMeter(model, Strata(labels, counts="neyman"))',
            )
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
        self._calls, self._next = 0, FIRST
        self._attempts = self.measured = 0
        self._last_call, self._last_end = 0, clock()  # of a measurement

    @property
    def stds(self) -> list[float | None]:
        """Standard deviation of one example's gradient in each stratum; None: unknown.

        The root of the trace of the covariance.
        """
        sums = zip(self._sums, self._weights, strict=True)
        return [(max(s, 0.0) / w) ** 0.5 if w else None for s, w in sums]

    def __call__(
        self, losses: Float[Tensor, " batch"], groups: Int64[Tensor, " batch"]
    ) -> None:
        """Measure the next stratum, if its turn can be afforded.

        On several ranks all of them must call it equally often: they measure in the
        same calls and share what they find.

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
        self._calls += 1
        if self._calls < self._next:
            return
        began = self._clock()
        stratum = self._attempts % len(self._sums)
        members = (groups.to(losses.device) == stratum).nonzero()[:, 0]
        trace = self._trace(losses, members) if len(members) >= LEAST else math.nan
        finite = math.isfinite(trace)
        total, ranks, cost, plain = _summed([
            trace if finite else 0.0,
            float(finite),
            self._clock() - began,
            (began - self._last_end) / (self._calls - self._last_call),
        ])  # fmt: skip
        if ranks:
            self._sums[stratum] = MEMORY * self._sums[stratum] + total / ranks
            self._weights[stratum] = MEMORY * self._weights[stratum] + 1
            self.measured += 1
            self._tell_strata()
        self._attempts += 1
        pause = 1
        if self._attempts >= min(ROUNDS * len(self._sums), MOST_AT_ONCE):
            # A measurement every so many calls costs the share of time asked for.
            pause = max(1, math.ceil(cost / max(plain, 1e-12) / self._overhead))
        self._next = self._calls + pause
        self._last_call, self._last_end = self._calls, self._clock()

    def _tell_strata(self) -> None:
        known = [s for s in self.stds if s is not None]
        if len(known) == len(self._sums) and any(known):
            self._strata.observe(known)

    def _trace(self, losses: Tensor, members: Tensor) -> float:
        """Of the covariance of the gradients of these examples, unbiased."""
        half = len(members) // 2
        parts = members[:half], members[half:]
        gradients = [self._gradient(losses[part].mean()) for part in parts]
        distance = sum(
            float((a - b).square().sum())
            for a, b in zip(*gradients, strict=True)
            if a is not None and b is not None
        )
        return distance / (1 / half + 1 / (len(members) - half))

    def _gradient(self, loss: Tensor) -> Any:
        try:
            return torch.autograd.grad(
                loss, self._parameters, retain_graph=True, allow_unused=True
            )
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise SettingError(
                "the losses have no graph to measure by",
                seen=str(error).splitlines()[0],
                fix="call the meter before the backward pass, with the losses as the "
                "model gave them",
            ) from error


def _summed(values: list[float]) -> list[float]:
    """Summed over ranks, so that all of them decide alike."""
    if not (dist.is_available() and dist.is_initialized()):
        return values
    device = torch.device("cuda") if dist.get_backend() == "nccl" else None
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return tensor.tolist()
