"""A monitor's arguments, checked; and which parameters it watches."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rightbatch.core.errors import SettingError
from rightbatch.noise.updates import held_by, is_seen, optimizers_in


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
    if optimizer is not None:
        _check_optimizer(optimizer)
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


def _check_optimizer(given: Any) -> None:
    optimizers = optimizers_in(given)
    if not optimizers:
        raise SettingError(
            "the second argument is not an optimizer",
            seen=f"a {type(given).__name__}",
            fix="a torch optimizer, or a list of several",
        )
    if not any(is_seen(o) for o in optimizers):
        raise SettingError(
            "the optimizer's updates cannot be seen",
            seen=f"{type(given).__name__} does not call torch.optim.Optimizer's "
            "__init__, and wraps no optimizer that does",
            why="a step's gradients are read when torch calls the hooks of an update",
            fix="super().__init__(params, defaults) in its __init__, or the optimizer "
            "that it hands the update to",
        )


def trained_parameters(
    model: nn.Module, optimizers: Sequence[torch.optim.Optimizer] | None
) -> list[tuple[str, Tensor]]:
    """The trainable parameters, by name, that the optimizers hold; None: all."""
    named: list[tuple[str, Tensor]] = [
        (n, p) for n, p in model.named_parameters() if p.requires_grad
    ]
    if optimizers is None:
        return named
    held = held_by(optimizers)
    return [(n, p) for n, p in named if id(p) in held]


def watched_parameters(
    model: nn.Module, optimizers: Sequence[torch.optim.Optimizer] | None
) -> list[tuple[str, Tensor]]:
    """The same; at least one.

    Raises:
        SettingError: There is none.
    """
    named = trained_parameters(model, None)
    if not named:
        raise SettingError(
            "the model has no trainable parameters",
            seen="no parameter has requires_grad=True",
            fix="unfreeze what is to be trained before making the monitor",
        )
    watched = trained_parameters(model, optimizers)
    if not watched:
        raise SettingError(
            "the optimizer does not hold the model's parameters",
            seen=f"{len(named)} trainable parameters, none of them among the "
            f"optimizer's {len(held_by(optimizers or ()))}",
            why="its steps would say nothing of this model's gradient",
            fix="make the optimizer from model.parameters(), after wrapping or moving",
        )
    return watched
