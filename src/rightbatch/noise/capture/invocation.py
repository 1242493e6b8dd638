"""A call of a torch function, to be made now, or again in another way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from rightbatch.noise.capture.tracked import TrackedTensor


@dataclass(frozen=True, slots=True)
class Invocation:
    """A call that tracked tensors enter.

    Attributes:
        func: The function.
        args: Its arguments.
        kwargs: The same, by name.
        given: The tracked tensors among them.
    """

    func: Any
    args: Any
    kwargs: Any
    given: list[TrackedTensor]

    @property
    def name(self) -> str:
        """The function's."""
        return getattr(self.func, "__name__", "")

    def make(self, instead: dict[int, Tensor] | None = None) -> Any:
        """Its result, with some tensors, by identity, replaced."""
        if not instead:
            return self.func(*self.args, **self.kwargs)
        args, kwargs = _swapped(self.args, instead), _swapped(self.kwargs, instead)
        return self.func(*args, **kwargs)


def flat(values: Any) -> list[Any]:
    """Everything in nested lists and dicts."""
    if isinstance(values, dict):
        values = values.values()
    elif not isinstance(values, (list, tuple)):
        return [values]
    found = []
    for value in values:
        if isinstance(value, (list, tuple, dict)):
            found += flat(value)
        else:
            found.append(value)
    return found


def _swapped(values: Any, by: dict[int, Tensor]) -> Any:
    if isinstance(values, Tensor):
        return by.get(id(values), values)
    if isinstance(values, (list, tuple)):
        return type(values)([_swapped(v, by) for v in values])
    if isinstance(values, dict):
        return {k: _swapped(v, by) for k, v in values.items()}
    return values
