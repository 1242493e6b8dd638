"""Every generator of this process that a step may draw from, saved and set back."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def random_state(device: torch.device) -> dict[str, Any]:
    """Every generator of this process that a step may draw from: plain values."""
    numpy: Any = np.random.get_state()
    kind, keys, *rest = numpy
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["device"] = torch.cuda.get_rng_state(device)
    elif device.type != "cpu":
        module = getattr(torch, device.type, None)
        if hasattr(module, "get_rng_state"):
            state["device"] = module.get_rng_state()
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Set them back."""
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "device" in state:
        module = getattr(torch, device.type, None)
        if device.type == "cuda":
            torch.cuda.set_rng_state(state["device"], device)
        elif hasattr(module, "set_rng_state"):  # not so on a CPU, after a device
            module.set_rng_state(state["device"])


def seed_all(seed: int) -> None:
    """Seed Python's, numpy's and torch's global generators."""
    torch.manual_seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    random.seed(seed)
