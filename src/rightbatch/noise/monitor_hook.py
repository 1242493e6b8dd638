"""A hook that calls its owner as long as there is one, and never breaks the step."""

from __future__ import annotations

import itertools
import weakref
from typing import Any, ClassVar

import torch
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)


class Hook:
    """Passes a call of torch's on to a method, through the owner's guard.

    It does not keep its owner alive, and a copy of it calls nobody: a watched model can
    be copied and pickled, and its copy is not watched.

    Args:
        owner: Weak reference to an object with a ``guard``; None: nobody.
        name: Of its method.
        part: The parameter that is lost if the method fails, by index; the method is
            given it first. None: everything is lost.
    """

    def __init__(self, owner: Any, name: str, part: int | None = None) -> None:
        self._owner, self._name, self._part = owner, name, part

    def __call__(self, *args: Any) -> Any:
        """What the method returns, unless a compiler is tracing it."""
        owner = None if self._owner is None else self._owner()
        if owner is None or torch.compiler.is_compiling():
            return None
        first = () if self._part is None else (self._part,)
        work = getattr(owner, self._name)
        return owner.guard.run(work, *first, *args, part=self._part)

    def __reduce__(self) -> Any:
        return Hook, (None, self._name)


class UpdateHook:
    """Calls ``_before_update`` and ``_after_update`` of its owner at every update.

    Torch's own hooks of all optimizers are registered once and stay. To take one away
    in the middle of an update, as when a monitor is collected there, changes what torch
    is going through: that update would end with an error.
    """

    _owners: ClassVar[weakref.WeakValueDictionary[int, Any]] = (
        weakref.WeakValueDictionary()
    )
    _numbers: ClassVar = itertools.count()

    def __init__(self, owner: Any) -> None:
        self._number = next(self._numbers)
        if self._number == 0:
            register_optimizer_step_pre_hook(_before_update)
            register_optimizer_step_post_hook(_after_update)
        self._owners[self._number] = owner

    def remove(self) -> None:
        """Call nobody any more."""
        self._owners.pop(self._number, None)


def _before_update(optimizer: Any, args: Any, kwargs: Any) -> Any:
    """The arguments of the update, where an owner has changed them."""
    changed = None
    for owner in list(UpdateHook._owners.values()):
        hook = Hook(weakref.ref(owner), "_before_update")
        given = hook(optimizer, args, kwargs)
        if given is not None:
            changed = args, kwargs = given
    return changed


def _after_update(optimizer: Any, args: Any, kwargs: Any) -> None:
    for owner in list(UpdateHook._owners.values()):
        Hook(weakref.ref(owner), "_after_update")(optimizer, args, kwargs)
