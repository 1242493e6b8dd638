"""A monitor's arguments, checked; and which parameters it watches."""

from __future__ import annotations

import numbers
from typing import Any

import torch
from torch import Tensor, nn

from rightbatch.core.errors import SettingError


def check_settings(
    model: Any, optimizer: Any, overhead: Any, groups: Any, population: int | None
) -> None:
    """Refuse what cannot work."""
    if not isinstance(model, nn.Module):
        raise SettingError(
            "the first argument is not a model",
            seen=f"a {type(model).__name__}",
            fix="NoiseMonitor(model, optimizer), the model as the loop calls it",
        )
    if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
        raise SettingError(
            "the second argument is not an optimizer",
            seen=f"a {type(optimizer).__name__}",
            fix="one torch optimizer; leave it out where the model has several",
        )
    if isinstance(overhead, bool) or not isinstance(overhead, numbers.Real):
        raise SettingError(
            f"overhead={overhead!r} is not a number",
            fix="a share of the time: 0.02 for 2 %, math.inf for every step",
        )
    if not float(overhead) > 0:
        raise SettingError(
            f"overhead={overhead} leaves no time to measure",
            fix="a positive share such as 0.02, or math.inf for every step",
        )
    if groups != "examples" and (
        not isinstance(groups, numbers.Integral) or groups < 2
    ):
        raise SettingError(
            f"groups={groups!r} is not a number of groups that can be compared",
            why="noise is the difference between groups of the same batch",
            fix='2 or more, such as 8, or "examples"',
        )
    if population is not None and population < 2:
        raise SettingError(
            f"population={population} is too small for a data set",
            fix="the number of examples in the data set: 2 or more",
        )


def watched_parameters(
    model: nn.Module, optimizer: torch.optim.Optimizer | None
) -> list[tuple[str, Tensor]]:
    """The trainable parameters, by name, that the optimizer holds."""
    named: list[tuple[str, Tensor]] = [
        (n, p) for n, p in model.named_parameters() if p.requires_grad
    ]
    if not named:
        raise SettingError(
            "the model has no trainable parameters",
            seen="no parameter has requires_grad=True",
            fix="unfreeze what is to be trained before making the monitor",
        )
    if optimizer is None:
        return named
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    watched = [(n, p) for n, p in named if id(p) in held]
    if not watched:
        raise SettingError(
            "the optimizer does not hold the model's parameters",
            seen=f"{len(named)} trainable parameters, none of them among the "
            f"optimizer's {len(held)}",
            why="its steps would say nothing of this model's gradient",
            fix="make the optimizer from model.parameters(), after wrapping or moving",
        )
    return watched
