"""Which updates are the model's, and whether a step's gradients belong together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer


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


class Updates:
    """Follows the updates of some parameters, by whatever optimizer.

    An optimizer may compute the gradients itself, by a closure. If that runs once, the
    step is like any other, only that it ends behind the update.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._ids = {id(p) for p in parameters}
        self._updating: Optimizer | None = None  # by a closure
        self._evaluations = 0

    def concern(self, optimizer: Optimizer) -> bool:
        """Whether it holds any of the parameters."""
        groups = optimizer.param_groups
        return any(id(p) in self._ids for group in groups for p in group["params"])

    def begin(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        """An update begins.

        Returns:
            The arguments to make it with, where a closure makes its gradients; None if
            the gradients are complete.
        """
        self._updating, self._evaluations = None, 0
        place: Any = 1 if len(args) > 1 else "closure"
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if not callable(closure):
            return None
        self._updating = optimizer
        counted = self._counted(closure)
        if place == 1:
            return (args[0], counted, *args[2:]), kwargs
        return args, kwargs | {"closure": counted}

    def within(self, optimizer: Optimizer) -> bool:
        """Whether another optimizer's update is under way, which makes this one."""
        return self._updating is not None and self._updating is not optimizer

    def end(self, optimizer: Optimizer) -> int | None:
        """How often the closure ran in an update; None: there was none."""
        if self._updating is not optimizer:
            return None
        self._updating = None
        return self._evaluations

    def _counted(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        def counted() -> Any:
            self._evaluations += 1
            return closure()

        return counted
