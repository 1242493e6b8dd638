"""What a monitor is given, checked: its optimizers, and which parameters they hold."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from rightbatch.core.errors import SettingError
from rightbatch.core.whole_number import whole_number


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
    is_number = isinstance(overhead, numbers.Real) and not isinstance(overhead, bool)
    if not (is_number and float(overhead) > 0):
        raise SettingError(
            f"overhead={overhead!r} is no share of the time",
            fix="a positive number such as 0.02 for 2 %, or math.inf for every step",
        )
    if groups != "examples" and (
        not isinstance(groups, numbers.Integral) or groups < 2
    ):
        raise SettingError(
            f"groups={groups!r} is not a number of groups that can be compared",
            why="noise is the difference between groups of the same batch",
            fix='2 or more, such as 8, or "examples"',
        )
    if population is not None:
        whole_number(population, "population", least=2)


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


def optimizers_in(given: Any) -> list[Optimizer]:
    """The optimizer that was given, or several, and all that they wrap.

    Trainers wrap an optimizer in an object that keeps no state of its own.
    """
    found: dict[int, Optimizer] = {}
    starts = _items(given)
    waiting = [*starts, *(v for start in starts for v in _inside(start))]
    while waiting:
        value = waiting.pop(0)
        if isinstance(value, Optimizer) and id(value) not in found:
            found[id(value)] = value
            waiting += _inside(value)
    return list(found.values())


def _items(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _inside(value: Any) -> list[Any]:
    attributes = getattr(value, "__dict__", {}).values()
    return [item for attribute in attributes for item in _items(attribute)]


def is_seen(optimizer: Optimizer) -> bool:
    """Whether torch calls hooks at its updates: its ``__init__`` has seen to that."""
    return bool(getattr(type(optimizer).step, "hooked", False))


def held_by(optimizers: Iterable[Optimizer]) -> set[int]:
    """The ``id`` of every parameter in them."""
    return {
        id(p)
        for optimizer in optimizers
        for group in getattr(optimizer, "param_groups", ())
        for p in group["params"]
    }


def trained_parameters(
    model: nn.Module, optimizers: Sequence[Optimizer] | None
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
    model: nn.Module, optimizers: Sequence[Optimizer] | None
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
