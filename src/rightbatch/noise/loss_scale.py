"""By how much a loss was multiplied before its backward pass, as for float16."""

from __future__ import annotations

import math
import sys
from typing import Any

import torch

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

    @property
    def looking(self) -> bool:
        """Whether `unknown_factor` may still find something."""
        return self._scaler is None and self._looks < LOOKS

    def unknown_factor(self, sent: float, at_update: float) -> float | None:
        """A factor that is divided out by somebody else, before every update.

        Clipping makes norms the same whatever they were; a factor is the same
        whatever the norms are. So two measured steps tell one from the other.

        Args:
            sent: Norm of the gradient as the backward pass sent it, divided by
                `factor`.
            at_update: Of ``.grad``.
        """
        self._looks += 1
        if not (0 < sent < math.inf and 0 < at_update < math.inf):
            return None
        last, factor = self._last, sent / at_update
        self._last = sent, factor
        if last is None or abs(math.log(factor)) < math.log(NOTICED):
            return None
        steady = abs(math.log(factor / last[1])) < SAME
        return factor if steady and abs(math.log(sent / last[0])) > OTHER else None


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
