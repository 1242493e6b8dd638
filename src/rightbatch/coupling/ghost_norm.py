"""Batch normalisation of small groups inside a larger batch."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from rightbatch.core.torch_private import BatchNorm
from rightbatch.core.whole_number import whole_number
from rightbatch.coupling.synchronized_norm import Activations, check_axes

# Values of a group up to which all groups at once are faster than one after another on
# the CPU, and the same where examples have positions: 0.8 to 4.6 times as fast below,
# 0.3 to 1.2 above, most with many small groups. [measured: benchmarks/norms.py]
FOLDED, FOLDED_POSITIONS = 4096, 32768

PerGroup = Float[Tensor, "groups channels"]


class GhostBatchNorm(BatchNorm):
    """BatchNorm over each ``group`` examples of a batch, in the order they come.

    What a batch made in micro-batches of ``group`` examples does: the same outputs,
    gradients and running statistics, at the speed of larger micro-batches. In eval mode
    it is BatchNorm.

    What is left over joins the last group, which then holds up to ``2 * group - 1``; a
    batch smaller than a group is one group.

    Running statistics move as far per batch as one update of BatchNorm would move them
    (an `Accumulator` sees to the same): a group of a share s of the batch has the
    momentum ``1 - (1 - momentum) ** s``. With ``momentum=None`` every group counts.

    Args:
        num_features: Channels, the second axis of the input.
        group: Examples that are normalised together.
        eps: Added to the variance.
        momentum: Weight of the newest statistics; None: their mean since the start.
        affine: Whether there are weights and biases.
        track_running_stats: Whether statistics for eval mode are kept.
        device: Of weights and statistics.
        dtype: Of weights and statistics.

    Raises:
        SettingError: ``group`` is no whole number above 1.

    Example:
        >>> import torch
        >>> norm, x = GhostBatchNorm(3, group=4), torch.randn(8, 3)
        >>> bool(norm(x)[:4].mean(0).abs().max() < 1e-6)
        True

    References:
        Hoffer, Hubara, Soudry 2017, arXiv:1705.08741.
    """

    def __init__(
        self,
        num_features: int,
        group: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype
        )
        self.group = whole_number(group, "group", least=2)

    def _check_input_dim(self, input: Tensor) -> None:
        check_axes(input, self.num_features)

    def extra_repr(self) -> str:
        """Its arguments, as ``print(model)`` shows them."""
        return f"{super().extra_repr()}, group={self.group}"

    def forward(self, input: Activations) -> Activations:
        """The input, each channel at mean 0 and variance 1 over every group."""
        examples, group = len(input), self.group
        if not self.training or examples < 2 * group:
            return super().forward(input)
        self._check_input_dim(input)
        if not _folds(input, group):
            last = group + examples % group
            sizes = [group] * ((examples - last) // group) + [last]
            parts = input.split(sizes)
            return torch.cat([self._together(x, len(x) / examples) for x in parts])
        if examples % group == 0:
            return self._folded(input, group / examples)
        even = examples - group - examples % group
        first = self._folded(input[:even], group / examples)
        rest = self._together(input[even:], 1 - even / examples)
        return torch.cat([first, rest])

    def _share(self, share: float) -> float:
        """The momentum of a part that is this share of the batch."""
        return 0.0 if self.momentum is None else 1 - (1 - self.momentum) ** share

    def _together(self, x: Activations, share: float) -> Activations:
        """One group, as BatchNorm has it."""
        mean, var, momentum = self.running_mean, self.running_var, self._share(share)
        if not self.track_running_stats:
            mean = var = None
        else:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                momentum = 1 / float(self.num_batches_tracked)
        affine = self.weight, self.bias
        return F.batch_norm(x, mean, var, *affine, True, momentum, self.eps)

    def _folded(self, x: Activations, share: float) -> Activations:
        """Groups of equal size at once: those of all groups are channels of one."""
        groups, channels = len(x) // self.group, x.shape[1]
        y = x.reshape(groups, self.group, channels, -1).transpose(1, 2)
        inner = y.shape
        y = y.reshape(1, groups * channels, -1)
        weight, bias = (
            None if p is None else p.repeat(groups) for p in (self.weight, self.bias)
        )
        mean = var = None
        if self.track_running_stats:
            mean = torch.zeros_like(self.running_mean).repeat(groups)
            var = torch.zeros_like(mean)
        y = F.batch_norm(y, mean, var, weight, bias, True, 1.0, self.eps)
        if mean is not None and var is not None:
            moments = mean.view(groups, channels), var.view(groups, channels)
            self._track(*moments, self._share(share))
        return y.view(inner).transpose(1, 2).reshape(x.shape)

    @torch.no_grad()
    def _track(self, means: PerGroup, variances: PerGroup, momentum: float) -> None:
        """Move the running statistics by each group's in turn."""
        groups = len(means)
        self.num_batches_tracked.add_(groups)
        if self.momentum is None:
            keep = 1 - groups / float(self.num_batches_tracked)
            weights = [(1 - keep) / groups] * groups
        else:
            keep = (1 - momentum) ** groups
            weights = [momentum * (1 - momentum) ** i for i in reversed(range(groups))]
        column = means.new_tensor(weights).unsqueeze(1)
        self.running_mean.mul_(keep).add_((column * means).sum(0))
        self.running_var.mul_(keep).add_((column * variances).sum(0))


def _folds(x: Activations, group: int) -> bool:
    """Whether all groups at once are faster than one after another."""
    if x.device.type != "cpu":
        return True  # one kernel instead of many [assumed: no device was measured]
    most = FOLDED if x.shape[2:].numel() == 1 else FOLDED_POSITIONS
    return group * x[0].numel() <= most
