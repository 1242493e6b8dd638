"""Several optimizers of one model, as one: all of them step, or none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from rightbatch.core.errors import SettingError

Optimizers = torch.optim.Optimizer | Sequence[torch.optim.Optimizer]
MEMBERS = "optimizers"  # of a state dict: those of the members, in their order


class SeveralOptimizers(torch.optim.Optimizer):
    """Optimizers of different parameters that are stepped together.

    Its param groups and states are those of its members, as they are at any time: what
    is changed here is changed there, and the other way round.

    Args:
        members: Two or more, in the order in which they step.

    Raises:
        SettingError: One of them is no optimizer, or a parameter belongs to two.

    Example:
        >>> import torch
        >>> layer = torch.nn.Linear(3, 2)
        >>> both = SeveralOptimizers(
        ...     [torch.optim.Muon([layer.weight]), torch.optim.AdamW([layer.bias])]
        ... )
        >>> len(both.param_groups), optimizer_name(both)
        (2, 'Muon + AdamW')
    """

    # What torch's own __init__ does is done by the members.
    def __init__(self, members: Sequence[torch.optim.Optimizer]) -> None:
        self.members = tuple(members)
        self.defaults: dict[str, Any] = {}
        _check_members(self.members)

    # torch's own copy would keep the groups without their optimizers.
    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.members,)

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # pyrefly: ignore
        """Of all members, one after another: the very dictionaries they hold."""
        return [group for member in self.members for group in member.param_groups]

    @property
    def state(self) -> dict[Tensor, Any]:  # pyrefly: ignore
        """Of all members, by parameter: the very states they hold."""
        return {p: s for member in self.members for p, s in member.state.items()}

    def step(self, closure: Any = None) -> Any:
        """One update of every member, by the gradients that are there."""
        if closure is not None:
            raise SettingError(
                "several optimizers take no closure",
                why="each would evaluate it anew, at weights that the others changed",
                fix="the backward pass first, then step()",
            )
        for member in self.members:
            member.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Of every member."""
        for member in self.members:
            member.zero_grad(set_to_none=set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """Those of the members, in their order."""
        return {MEMBERS: [member.state_dict() for member in self.members]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from `state_dict`.

        Raises:
            SettingError: It is that of another number of optimizers.
        """
        states = state_dict.get(MEMBERS, [state_dict])
        if len(states) != len(self.members):
            raise SettingError(
                "the state is of another number of optimizers",
                seen=f"{len(states)} there, {len(self.members)} here",
                fix="the same optimizers in the same order as were saved",
            )
        for member, state in zip(self.members, states, strict=True):
            member.load_state_dict(state)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refused: add it to one of the members.

        Raises:
            SettingError: Always.
        """
        raise SettingError(
            "a param group belongs to one of the optimizers",
            seen=optimizer_name(self),
            fix="add it to that one; its group is seen here at once",
        )

    def register_step_pre_hook(self, hook: Callable[..., Any]) -> RemovableHandle:
        """Called before any member has updated."""
        return self.members[0].register_step_pre_hook(
            lambda _, args, kwargs: hook(self, args, kwargs)
        )

    def register_step_post_hook(self, hook: Callable[..., Any]) -> RemovableHandle:
        """Called when all members have updated."""
        return self.members[-1].register_step_post_hook(
            lambda _, args, kwargs: hook(self, args, kwargs)
        )


def as_one(optimizers: Any) -> torch.optim.Optimizer:
    """An optimizer as it is; several of them as one.

    Raises:
        SettingError: It is neither, or a parameter belongs to two.
    """
    if isinstance(optimizers, torch.optim.Optimizer):
        return optimizers
    if isinstance(optimizers, (list, tuple)) and optimizers:
        several = SeveralOptimizers(optimizers)
        return several if len(optimizers) > 1 else several.members[0]
    raise SettingError(
        "this is neither an optimizer nor several",
        seen=f"{optimizers!r:.60}",
        fix="a torch.optim.Optimizer, or a list of them: [Muon(...), AdamW(...)]",
    )


def members_of(optimizer: torch.optim.Optimizer) -> tuple[torch.optim.Optimizer, ...]:
    """The optimizers that are stepped as this one; one alone is its own."""
    if isinstance(optimizer, SeveralOptimizers):
        return optimizer.members
    return (optimizer,)


def optimizer_name(optimizer: torch.optim.Optimizer) -> str:
    """The class of an optimizer, or of each of several: ``"Muon + AdamW"``."""
    return " + ".join(type(member).__name__ for member in members_of(optimizer))


def _check_members(members: Sequence[Any]) -> None:
    held: dict[int, int] = {}
    for number, member in enumerate(members):
        if not isinstance(member, torch.optim.Optimizer):
            raise SettingError(
                f"number {number + 1} of the optimizers is none",
                seen=f"a {type(member).__name__}",
                fix="a list of torch.optim.Optimizer",
            )
        for parameter in (p for g in member.param_groups for p in g["params"]):
            if held.setdefault(id(parameter), number) != number:
                first = type(members[held[id(parameter)]]).__name__
                raise SettingError(
                    "a parameter belongs to two optimizers",
                    seen=f"one of shape {tuple(parameter.shape)}, in number "
                    f"{held[id(parameter)] + 1} ({first}) and number {number + 1} "
                    f"({type(member).__name__})",
                    why="every step would update it twice",
                    fix="each parameter in one of them",
                )
