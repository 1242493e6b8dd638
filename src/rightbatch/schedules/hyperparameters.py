"""The optimizer's numbers at any batch, always from those of the first: no drift."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.optim import lr_scheduler

from rightbatch.core.errors import SettingError
from rightbatch.core.torch_private import has_scheduler
from rightbatch.core.whole_number import whole_number
from rightbatch.job.optimizers import check_rates, kinds_of
from rightbatch.job.several_optimizers import Optimizers, as_one, members_of
from rightbatch.schedules.by_examples import ByExamples
from rightbatch.schedules.scaling import (
    RATES,
    Scaling,
    assign,
    scaled_group,
    scaling_for,
    warn_of_unknown,
)

_KEYS = (*RATES, "eps", "weight_decay", "betas", "alpha")
_OTHERS = (*RATES, "weight_decay")  # what schedulers change between two moves
# Schedulers whose next rate is in proportion to their base rates or to the present one.
IN_PROPORTION = (
    lr_scheduler.LambdaLR,
    lr_scheduler.MultiplicativeLR,
    lr_scheduler.StepLR,
    lr_scheduler.MultiStepLR,
    lr_scheduler.ConstantLR,
    lr_scheduler.LinearLR,
    lr_scheduler.ExponentialLR,
    lr_scheduler.PolynomialLR,
    lr_scheduler.OneCycleLR,
    lr_scheduler.CosineAnnealingLR,
    lr_scheduler.CosineAnnealingWarmRestarts,
)


@dataclass
class _GroupNumbers:
    """The numbers of one param group.

    Attributes:
        reference: The batch that ``base`` was chosen for.
        base: At that batch, without a decay's factor.
        now: As they were last set; what differs was changed by somebody else.
    """

    reference: int
    base: dict[str, Any]
    now: dict[str, Any] = field(default_factory=dict)


class Hyperparameters:
    """Moves an optimizer from batch to batch by one rule.

    Every move starts from the numbers at the reference batch, so a batch that comes
    back brings its numbers back. A move changes all param groups or none, and the last
    one can be undone. If somebody else changes a learning rate in between (a scheduler,
    a hand), that factor is kept. The numbers of a param group that is added in between
    are taken for those of the batch in force then.

    Args:
        optimizer: One, or a list of several; changed in place, every param group by
            the rule of its family.
        batch_size: The batch its present numbers were chosen for.
        rule: A rule by name, see `rightbatch.schedules.scaling.scaling_for`.
        noise_scale: For the noise-aware rules, in examples.
        exponent: For the rule ``"exponent"``.
        scheduler: `ByExamples` around a torch scheduler of this optimizer, or a list of
            them: each makes its steps at the rates of the reference batch, so that the
            rate is always the scheduler's times the rule's factor. A bare torch
            scheduler only if its rates are in proportion to its base rates, which
            follow too; it goes on counting steps.

    Raises:
        SettingError: There is no such rule, or it lacks a number; or the scheduler
            cannot follow.

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
        optimizer: Optimizers,
        batch_size: int,
        *,
        rule: str = "auto",
        noise_scale: float | None = None,
        exponent: float | None = None,
        scheduler: Any = None,
    ) -> None:
        batch_size = whole_number(batch_size, "batch_size")
        self.optimizer, self.reference = as_one(optimizer), batch_size
        self.rule, self.noise_scale, self.exponent = rule, noise_scale, exponent
        given = scheduler if isinstance(scheduler, (list, tuple)) else [scheduler]
        self.schedulers = [s for s in given if s is not None]
        self.batch_size, self.rate = batch_size, 1.0
        self._groups: dict[int, _GroupNumbers] = {}
        self._before: tuple[int, float, dict[int, _GroupNumbers]] | None = None
        self._catch_up()
        for one in self.schedulers:
            if isinstance(one, ByExamples):
                one.around = self.at_reference
            else:
                _check_proportion(one)
        self._base_lrs = [list(getattr(s, "base_lrs", [])) for s in self.schedulers]
        self._stand_at(batch_size, 1.0)
        counts_steps = any(map(has_scheduler, members_of(self.optimizer)))
        self._unheard_scheduler = counts_steps and not self.schedulers
        self._unknown = rule == "auto"

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
        batch_size = whole_number(batch_size, "batch_size")
        if rate != 1 or (batch_size != self.reference and self.rule != "none"):
            check_rates(self.optimizer, "it is to follow the batch, or a decay")
        self._catch_up()
        groups = {key: replace(numbers) for key, numbers in self._groups.items()}
        before = self.batch_size, self.rate, groups
        self._assign(self._scaled(batch_size, rate))
        if batch_size != self.batch_size:
            self._notice()
        self._stand_at(batch_size, rate)
        self._before = before
        return self.scaling

    def undo(self) -> None:
        """Take the last move back; does nothing if there is none to take back."""
        before, self._before = self._before, None
        if before is None:
            return
        self._catch_up()
        batch_size, rate, known = before
        self._groups |= known  # one that came since stays as it is
        groups = self.optimizer.param_groups
        assign(self.optimizer, [self._groups[_key(group)].now for group in groups])
        self._stand_at(batch_size, rate)

    @contextmanager
    def at_reference(self) -> Iterator[None]:
        """Inside, the rates are those of the reference batch.

        What is changed there is changed for every batch: a scheduler that steps there
        knows nothing of the batch, whatever it computes the rate from.
        """
        self._catch_up()
        groups = [(g, self._groups[_key(g)]) for g in self.optimizer.param_groups]
        for group, numbers in groups:
            group.update({k: v for k, v in numbers.base.items() if k in _OTHERS})
        try:
            yield
        finally:
            for group, numbers in groups:
                left = {k: v for k, v in _numbers(group).items() if k in _OTHERS}
                numbers.base = numbers.base | left | _first_beta(group, numbers)
            self._assign(self._scaled(self.batch_size, self.rate))
            self._before = None  # a scheduler's step is not taken back with a move

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        groups = [self._groups.get(_key(g)) for g in self.optimizer.param_groups]
        return {
            "batch_size": self.batch_size,
            "rate": self.rate,
            "base_lrs": [list(lrs) for lrs in self._base_lrs],
            "groups": [
                {"reference": n.reference, "base": dict(n.base), "now": dict(n.now)}
                for n in groups
                if n is not None
            ],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`; the optimizer's own state is loaded beside it.

        Raises:
            SettingError: The optimizer has other param groups than were saved.
        """
        groups = self.optimizer.param_groups
        if len(state["groups"]) != len(groups):
            raise SettingError(
                "the optimizer has other param groups than were saved",
                seen=f"{len(state['groups'])} then, {len(groups)} now",
                fix="add the groups that were added in the run before its state is "
                "loaded",
            )
        self._groups = {
            _key(group): _GroupNumbers(
                saved["reference"], _tupled(saved["base"]), _tupled(saved["now"])
            )
            for group, saved in zip(groups, state["groups"], strict=True)
        }
        if len(state["base_lrs"]) == len(self._base_lrs):
            self._base_lrs = [list(lrs) for lrs in state["base_lrs"]]
        self._stand_at(state["batch_size"], state["rate"])
        self._before = None

    def _scalings(self, batch_size: int) -> list[Scaling]:
        """How each param group comes from its own reference to the batch."""
        return [
            scaling_for(
                kind.family,
                self._groups[_key(group)].reference,
                batch_size,
                rule=self.rule,
                noise_scale=self.noise_scale,
                exponent=self.exponent,
                decoupled_decay=kind.decoupled,
            )
            for kind, group in zip(
                kinds_of(self.optimizer), self.optimizer.param_groups, strict=True
            )
        ]

    def _scaled(self, batch_size: int, rate: float) -> list[dict[str, Any]]:
        """The numbers of every param group at a batch, under a decay's factor."""
        groups = zip(
            self.optimizer.param_groups, self._scalings(batch_size), strict=True
        )
        new = [scaled_group(self._groups[_key(g)].base, s) for g, s in groups]
        for numbers in new:
            numbers.update({k: numbers[k] * rate for k in RATES if k in numbers})
        return new

    def _assign(self, new: list[dict[str, Any]]) -> None:
        assign(self.optimizer, new)
        for group in self.optimizer.param_groups:
            self._groups[_key(group)].now = _numbers(group)

    def _catch_up(self) -> None:
        """Bring the base numbers to what others have changed since they were set."""
        groups: dict[int, _GroupNumbers] = {}
        for group in self.optimizer.param_groups:
            now, known = _numbers(group), self._groups.get(_key(group))
            if known is None:  # new: chosen for what is in force
                base = dict(now)
                if self.rate:
                    base |= {k: base[k] / self.rate for k in RATES if k in base}
                groups[_key(group)] = _GroupNumbers(self.batch_size, base, now)
                continue
            base = known.base | _first_beta(group, known)
            for key in _OTHERS:
                old, new = known.now.get(key), now.get(key)
                if new is not None and (old is None or bool(new != old)):
                    nothing = old is None or bool(old == 0)
                    base[key] = new if nothing else base[key] * (new / old)
            groups[_key(group)] = _GroupNumbers(known.reference, base, now)
        self._groups = groups

    def _stand_at(self, batch_size: int, rate: float) -> None:
        """Take this for the batch and factor in force; bare schedulers follow."""
        self.batch_size, self.rate = batch_size, rate
        scalings = self._scalings(batch_size)
        self.scaling = scalings[0]
        factors = [scaling.lr * rate for scaling in scalings]
        for scheduler, lrs in zip(self.schedulers, self._base_lrs, strict=True):
            if lrs:
                pairs = zip(lrs, factors, strict=False)
                scheduler.base_lrs = [lr * factor for lr, factor in pairs]

    def _notice(self) -> None:
        """Tell, once, what does not follow as the batch changes."""
        if self._unknown:
            self._unknown = False
            warn_of_unknown(kinds_of(self.optimizer), stacklevel=5)
        if self._unheard_scheduler:
            self._unheard_scheduler = False
            warnings.warn(
                "a learning-rate scheduler of this optimizer counts steps: as the "
                "batch changes it passes by at another number of examples, and one "
                "that computes the rate anew (LambdaLR, CosineAnnealingLR) undoes the "
                "batch's scaling; wrap it in rb.schedules.ByExamples(scheduler, "
                "batch_size=...), and pass it here as scheduler=",
                stacklevel=4,
            )


def _check_proportion(scheduler: Any) -> None:
    """Refuse a bare scheduler whose rates cannot be moved from outside.

    Raises:
        SettingError: Its next rate depends on more than its base rates.
    """
    floor = getattr(scheduler, "eta_min", 0)
    if floor or not isinstance(scheduler, IN_PROPORTION):
        raise SettingError(
            f"{type(scheduler).__name__} cannot follow the batch by itself",
            why="what it computes the next rate from is not in proportion to its base "
            "rates",
            fix="scheduler=rb.schedules.ByExamples(scheduler, batch_size=...), stepped "
            "by examples; a ReduceLROnPlateau is left out here and stepped as ever",
        )


def _key(group: dict[str, Any]) -> int:
    """Of a param group, also when its dictionary is replaced: its first parameter."""
    return id(next(iter(group["params"]), None))


def _first_beta(group: dict[str, Any], numbers: _GroupNumbers) -> dict[str, Any]:
    """The base betas, where somebody else has moved the first (OneCycleLR)."""
    now, old, base = group.get("betas"), numbers.now.get("betas"), numbers.base
    if old is None or now is None or now[0] == old[0]:
        return {}
    return {"betas": (now[0], *base["betas"][1:])}


def _numbers(group: dict[str, Any]) -> dict[str, Any]:
    """What may follow the batch, copied: capturable optimizers keep tensors."""
    return {
        key: group[key].clone() if isinstance(group[key], torch.Tensor) else group[key]
        for key in _KEYS
        if group.get(key) is not None
    }


def _tupled(numbers: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in numbers.items()}
