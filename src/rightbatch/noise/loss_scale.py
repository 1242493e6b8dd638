"""By how much a loss was multiplied before its backward pass, as for float16."""

from __future__ import annotations

import sys
from typing import Any

import torch


def loss_scale(scaler: Any = None) -> float:
    """What the gradients of this step were multiplied with; 1: nobody says so.

    Args:
        scaler: Has ``get_scale()``; None: a ``GradScaler`` is found where its ``step``
            is calling the optimizer's.
    """
    scaler = scaler or _calling_scaler()
    return 1.0 if scaler is None else float(scaler.get_scale())


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
