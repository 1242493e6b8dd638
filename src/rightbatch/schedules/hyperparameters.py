"""The optimizer's numbers at any batch, always from those of the first: no drift."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from rightbatch.core.errors import SettingError
from rightbatch.core.torch_private import has_scheduler
from rightbatch.core.whole_number import whole_number
from rightbatch.job.optimizers import decay_is_decoupled, optimizer_family
from rightbatch.schedules.scaling import (
    RATES,
    Scaling,
    assign,
    scaled_group,
    scaling_for,
)

_KEYS = (*RATES, "eps", "weight_decay", "betas", "alpha")
_OTHERS = (*RATES, "weight_decay")  # what schedulers change between two moves


class Hyperparameters:
    """Moves an optimizer from batch to batch by one rule.

    Every move starts from the numbers at the reference batch, so a batch that comes
    back brings its numbers back. A move changes all param groups or none, and the last
    one can be undone. If somebody else changes a learning rate in between (a scheduler,
    a hand), that factor is kept.

    Args:
        optimizer: Changed in place.
        batch_size: The batch its present numbers were chosen for.
        rule: A rule by name, see `rightbatch.schedules.scaling.scaling_for`.
        noise_scale: For the noise-aware rules, in examples.
        exponent: For the rule ``"exponent"``.
        scheduler: A torch scheduler of this optimizer: its base rates follow too.

    Raises:
        SettingError: There is no such rule, or it lacks a number.

    Example:
        >>> import torch, rightbatch as rb
        >>> weight = torch.nn.Parameter(torch.zeros(3))
        >>> adam = torch.optim.Adam([weight], lr=1e-3, betas=(0.9, 0.98))
        >>> numbers = rb.schedules.Hyperparameters(adam, 64)
        >>> numbers.move(256).lr, adam.param_groups[0]["lr"]
        (2.0, 0.002)
        >>> numbers.undo()
        >>> adam.param_groups[0]["lr"], adam.param_groups[0]["betas"]
        (0.001, (0.9, 0.98))

    References:
        ``rightbatch.schedules.scaling.SOURCES``, rule by rule.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        batch_size: int,
        *,
        rule: str = "auto",
        noise_scale: float | None = None,
        exponent: float | None = None,
        scheduler: Any = None,
    ) -> None:
        whole_number(batch_size, "batch_size")
        self.optimizer, self.reference = optimizer, batch_size
        self.rule, self.noise_scale, self.exponent = rule, noise_scale, exponent
        self.scheduler = scheduler
        self.batch_size, self.rate = batch_size, 1.0
        self._base = self._now()
        self._set = self._now()
        self._base_lrs = list(getattr(scheduler, "base_lrs", []))
        self._before: dict[str, Any] | None = None
        self._counts_steps = has_scheduler(optimizer)
        self.scaling = self._scaling(batch_size)

    def move(self, batch_size: int, rate: float = 1.0) -> Scaling:
        """Change every number to what the rule makes of it at this batch.

        Args:
            batch_size: Examples per step from now on.
            rate: A further factor on the learning rate: that of a decay.

        Returns:
            What was done, relative to the reference batch.

        Raises:
            SettingError: The rule leaves its domain; nothing has changed.
        """
        whole_number(batch_size, "batch_size")
        scaling = self._scaling(batch_size)
        before = {**self.state_dict(), "now": self._now()}
        base = self._caught_up()
        new = [scaled_group(group, scaling) for group in base]
        for group in new:
            group.update({key: group[key] * rate for key in RATES if key in group})
        if batch_size != self.batch_size:
            self._notice_scheduler()
        assign(self.optimizer, new)
        self._base, self._set = base, self._now()
        self.batch_size, self.rate, self.scaling = batch_size, rate, scaling
        self._move_scheduler()
        self._before = before
        return scaling

    def undo(self) -> None:
        """Take the last move back; does nothing if there is none to take back."""
        before, self._before = self._before, None
        if before is not None:
            assign(self.optimizer, before["now"])
            self._restore(before)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return {
            "batch_size": self.batch_size,
            "rate": self.rate,
            "base_lrs": list(self._base_lrs),
            "base": [dict(group) for group in self._base],
            "set": [dict(group) for group in self._set],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`; the optimizer's own state is loaded beside it."""
        self._restore(state)
        self._before = None

    def _restore(self, state: dict[str, Any]) -> None:
        self.batch_size, self.rate = state["batch_size"], state["rate"]
        self._base_lrs = list(state["base_lrs"]) if self._base_lrs else []
        self._base = [_tupled(group) for group in state["base"]]
        self._set = [_tupled(group) for group in state["set"]]
        self.scaling = self._scaling(self.batch_size)
        self._move_scheduler()

    def _scaling(self, batch_size: int) -> Scaling:
        return scaling_for(
            optimizer_family(self.optimizer),
            self.reference,
            batch_size,
            rule=self.rule,
            noise_scale=self.noise_scale,
            exponent=self.exponent,
            decoupled_decay=decay_is_decoupled(self.optimizer),
        )

    def _now(self) -> list[dict[str, Any]]:
        return [_numbers(group) for group in self.optimizer.param_groups]

    def _caught_up(self) -> list[dict[str, Any]]:
        """The base numbers, with what others have changed since the last move."""
        now = self._now()
        if len(now) != len(self._base):
            raise SettingError(
                "the optimizer has other param groups than before",
                seen=f"{len(self._base)} then, {len(now)} now",
                why="the numbers of a new group at the reference batch are not known",
                fix="add param groups before the numbers are first moved",
            )
        groups = [dict(base) for base in self._base]
        for base, old, new in zip(groups, self._set, now, strict=True):
            for key in _OTHERS:
                if key in new and key in old and bool(new[key] != old[key]):
                    known = bool(old[key] != 0)
                    base[key] = base[key] * new[key] / old[key] if known else new[key]
            if "betas" in old and new["betas"][0] != old["betas"][0]:  # OneCycleLR
                base["betas"] = (new["betas"][0], *base["betas"][1:])
        return groups

    def _move_scheduler(self) -> None:
        if self._base_lrs:
            factor = self.scaling.lr * self.rate
            self.scheduler.base_lrs = [lr * factor for lr in self._base_lrs]

    def _notice_scheduler(self) -> None:
        if self._counts_steps and self.scheduler is None:
            self._counts_steps = False
            warnings.warn(
                "a learning-rate scheduler of this optimizer counts steps: as the "
                "batch changes it passes by at another number of examples, and one "
                "that computes the rate anew (LambdaLR, CosineAnnealingLR) undoes the "
                "batch's scaling; wrap it in rb.schedules.ByExamples(scheduler, "
                "batch_size=...), and pass it here as scheduler=",
                stacklevel=4,
            )


def _numbers(group: dict[str, Any]) -> dict[str, Any]:
    """What may follow the batch, copied: capturable optimizers keep tensors."""
    return {
        key: group[key].clone() if isinstance(group[key], torch.Tensor) else group[key]
        for key in _KEYS
        if group.get(key) is not None
    }


def _tupled(numbers: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in numbers.items()}
