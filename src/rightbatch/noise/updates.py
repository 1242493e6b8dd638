"""The updates of some parameters, by whatever optimizer."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from rightbatch.noise.guard import Hook

# Who is told of every update, by any optimizer: has ``_before_update`` and
# ``_after_update``, and a guard.
followers: weakref.WeakSet[Any] = weakref.WeakSet()


def follow_updates(follower: Any) -> None:
    """Tell it of every update, as long as it lives."""
    _register_hooks()
    followers.add(follower)


def unfollow_updates(follower: Any) -> None:
    """Tell it no more."""
    followers.discard(follower)


@functools.cache
def _register_hooks() -> None:
    """Torch's hooks of all optimizers are registered once and stay.

    To take one away in the middle of an update, as when a monitor is collected there,
    changes what torch is going through: that update would end with an error.
    """
    register_optimizer_step_pre_hook(_before_update)
    register_optimizer_step_post_hook(_after_update)


def _before_update(optimizer: Any, args: Any, kwargs: Any) -> Any:
    """The arguments of the update, where a follower has changed them."""
    changed = None
    for follower in list(followers):
        hook = Hook(weakref.ref(follower), "_before_update")
        given = hook(optimizer, args, kwargs)
        if given is not None:
            changed = args, kwargs = given
    return changed


def _after_update(optimizer: Any, args: Any, kwargs: Any) -> None:
    for follower in list(followers):
        Hook(weakref.ref(follower), "_after_update")(optimizer, args, kwargs)


class Updates:
    """Which updates are those of some parameters, and where their gradients are made.

    An optimizer may compute the gradients itself, by a closure. If that runs once, the
    step is like any other, only that it ends behind the update.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._ids = {id(p) for p in parameters}
        self._updating: Optimizer | None = None  # by a closure
        self._evaluations = 0

    def concern(self, optimizer: Optimizer) -> bool:
        """Whether it holds any of the parameters, and no other one's update makes this.

        An optimizer with a closure may hand the update on to another.
        """
        if self._updating is not None and self._updating is not optimizer:
            return False
        groups = optimizer.param_groups
        return any(id(p) in self._ids for group in groups for p in group["params"])

    def begin(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        """An update begins.

        Returns:
            The arguments to make it with, where a closure makes its gradients; None if
            the gradients are complete.
        """
        self._updating, self._evaluations = None, 0
        positional = len(args) > 1
        closure = args[1] if positional else kwargs.get("closure")
        if not callable(closure):
            return None
        self._updating = optimizer

        def counted() -> Any:
            self._evaluations += 1
            return closure()

        if positional:
            return (args[0], counted, *args[2:]), kwargs
        return args, kwargs | {"closure": counted}

    def end(self, optimizer: Optimizer) -> int | None:
        """How often the closure ran in an update; None: there was none."""
        if self._updating is not optimizer:
            return None
        self._updating = None
        return self._evaluations
