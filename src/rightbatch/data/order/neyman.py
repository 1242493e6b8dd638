"""How noisy each stratum's gradient is, measured while training, for Neyman's rule."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int64
from torch import Tensor, nn

from rightbatch.core.errors import SettingError
from rightbatch.core.torch_private import has_no_graph
from rightbatch.data.order.strata import Strata

MEMORY = 0.9  # weight of what was measured before, per measurement [assumed]
FIRST = 3  # call that is measured first: the steps before it warm up [assumed]
PATIENCE = 3  # turns of all strata before one that gives nothing is named [assumed]
LEAST = 2  # examples in a stratum, to differ from each other [derived]
# Measurements of each stratum, and of all, before the overhead counts; they are made up
# for afterwards. [assumed]
ROUNDS, LOAN = 2, 32


class StratumMeter:
    r"""Measures each stratum's gradient noise and lets `Strata` choose by it.

    From the losses of the batch in hand: two halves of a stratum give two mean
    gradients a and b, and $|a - b|^2 / (1/m_a + 1/m_b)$ is an unbiased estimate of the
    trace of the covariance of its examples' gradients. Two backward passes measure one
    stratum; strata take turns, as often as the overhead allows. Measurements that are
    not finite (overflow) are left out.

    Args:
        parameters: The model, or the parameters that are trained.
        strata: ``Strata(labels, counts="neyman")``.
        overhead: Share of the training time that measuring may take.
        clock: Seconds; what the overhead is measured with.

    Raises:
        SettingError: The counts are not chosen by Neyman's rule.

    Example:
        >>> import math, torch, rightbatch as rb
        >>> from rightbatch.data.order.neyman import StratumMeter
        >>> x, y = torch.randn(1000, 2), (torch.arange(1000) % 100 == 0).float()
        >>> model = torch.nn.Linear(2, 1)
        >>> strata = rb.data.Strata(y, counts="neyman", multiple=2)
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
        strata.metered = True
        count = len(strata.sizes)
        self._sums, self._weights = [0.0] * count, [0.0] * count
        self._calls, self._last, self._next, self._turn = 0, 0, FIRST, 0
        self._since, self._tried, self._debt = clock(), 0, 0.0
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
        passed, stratum = began - self._since, self._turn
        self._turn = (self._turn + 1) % len(self._sums)
        members = (groups.to(losses.device) == stratum).nonzero()[:, 0]
        trace = self._trace(losses, members) if len(members) >= LEAST else math.nan
        known = math.isfinite(trace)
        cost = self._clock() - began
        total, ranks, cost, passed = _summed(
            [trace if known else 0.0, float(known), cost, passed]
        )
        if ranks:
            self._sums[stratum] = MEMORY * self._sums[stratum] + total / ranks
            self._weights[stratum] = MEMORY * self._weights[stratum] + 1
            self.measured += 1
            self._tell()
        self._tried += 1
        if self._tried == PATIENCE * len(self._sums) and not all(self._weights):
            missing = [n for n, w in enumerate(self._weights) if not w]
            names = ", ".join(str(self._strata.labels[n]) for n in missing[:5])
            warnings.warn(
                f"strata {names} never have two examples in a micro-batch of one rank: "
                "their noise is not known, so counts stay proportional; choose "
                "Strata(..., multiple=2 * ranks * micro-batches per step)",
                stacklevel=2,
            )
        # A measurement every so many calls costs the share of time that was asked for.
        # The first come at once, on loan: counts should not stay a guess for long.
        self._debt += cost
        if self._tried < min(ROUNDS * len(self._sums), LOAN):
            self._last, self._next, self._since = self._calls, 0, self._clock()
            return
        cost, self._debt = self._debt, 0.0
        calls = max(1, self._calls - self._last)
        self._last = self._calls
        plain = max(passed / calls, 1e-12)
        self._next = self._calls + max(1, math.ceil(cost / plain / self._overhead))
        self._since = self._clock()

    def state_dict(self) -> dict[str, Any]:
        """What was measured, as plain numbers."""
        return {"sums": list(self._sums), "weights": list(self._weights)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`.

        Raises:
            SettingError: It is of other strata.
        """
        if len(state.get("sums", [])) != len(self._sums):
            raise SettingError(
                "the state is of other strata",
                seen=f"{len(state.get('sums', []))} saved, {len(self._sums)} here",
                fix="what meter.state_dict() gave",
            )
        self._sums, self._weights = list(state["sums"]), list(state["weights"])

    def _tell(self) -> None:
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
        except RuntimeError as error:
            if not has_no_graph(error):
                raise
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
