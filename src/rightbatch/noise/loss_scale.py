"""By how much a loss was multiplied before its backward pass, as for float16."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rightbatch.noise.norms import squared_norm

LOOKS = 8  # measured steps in which gradients are compared with those of the update
SAME = 1e-3  # relative difference of two factors that are one [assumed]
OTHER = 1e-2  # of two norms that are not one [assumed]
NOTICED = 1.5  # factor that is worth a word [assumed]


class LossScale:
    """The factor in force, from the scaler that was given or that makes the update.

    Args:
        scaler: Has ``get_scale()``; None: a ``GradScaler`` is found where its ``step``
            calls the optimizer's.
    """

    def __init__(self, scaler: Any = None) -> None:
        self._scaler = scaler
        self._looks = 0
        self._last: tuple[float, float] | None = None  # norm, and norm over .grad's

    def factor(self) -> float:
        """What the gradients of this step were multiplied with; 1: nobody says so."""
        scaler = self._scaler or _calling_scaler()
        return 1.0 if scaler is None else float(scaler.get_scale())

    def unknown(self, squares: np.ndarray, parameters: Sequence[Tensor]) -> str:
        """What to say where somebody divides by a factor before every update; or "".

        Clipping makes norms the same whatever they were; a factor is the same whatever
        the norms are. So two measured steps tell one from the other.

        Args:
            squares: Squared norm of each gradient as the backward pass sent it, divided
                by `factor`; 0 where it was not seen.
            parameters: With ``.grad`` as it is at the update.
        """
        if self._scaler or self._looks == LOOKS or len(squares) != len(parameters):
            return ""
        self._looks += 1
        seen = [p.grad for s, p in zip(squares, parameters, strict=True) if s > 0]
        at_update = sum(float(squared_norm(g)) for g in seen if g is not None)
        if not (0 < at_update < math.inf and np.isfinite(squares).all()):
            return ""
        sent = math.sqrt(float(squares.sum()))
        factor, last = sent / math.sqrt(at_update), self._last
        self._last = sent, factor
        if last is None or abs(math.log(factor)) < math.log(NOTICED):
            return ""
        same = abs(math.log(factor / last[1])) < SAME
        if not same or abs(math.log(sent / last[0])) < OTHER:
            return ""
        return (
            f"the gradients at the update are 1 / {factor:.4g} of what the backward "
            "pass sent: trace and |G|^2 are those of the scaled loss; grad_scaler= "
            "takes what knows the scale, by get_scale()"
        )


def _calling_scaler() -> torch.amp.GradScaler | None:
    """The scaler whose ``step`` is making this update.

    Nothing else ties a scaler to an optimizer. Only a frame of that very function is
    looked into: reading any other's variables would keep its tensors alive.
    """
    code = torch.amp.GradScaler.step.__code__
    frame = sys._getframe()
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return None if frame is None else frame.f_locals["self"]
