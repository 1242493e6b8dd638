"""What kind of optimizer a param group has, as far as the batch is concerned."""

from __future__ import annotations

import numbers
from typing import Any, Literal, NamedTuple

import torch

from rightbatch.core.errors import SettingError
from rightbatch.job.several_optimizers import members_of

Family = Literal["sgd", "adam", "shampoo", "muon", "lion", "adafactor", "other"]
# Families by the names in the ancestry of an optimizer's class. One that is not known
# may hold anything under a name such as betas, so it is none of them.
NAMES: dict[Family, tuple[str, ...]] = {
    "adam": (
        *("Adam", "AdamW", "NAdam", "RAdam", "Adamax", "SparseAdam", "NAdamW"),
        *("RMSprop", "RMSpropTF", "Adagrad", "StableAdamW"),
        *("FusedAdam", "FusedAdamW", "CPUAdam", "DeepSpeedCPUAdam"),
        *("Adam8bit", "AdamW8bit", "Adam32bit", "AdamW32bit", "Adam4bit", "AdamW4bit"),
        *("PagedAdam", "PagedAdamW", "PagedAdam8bit", "PagedAdamW8bit", "AdamWFp8"),
    ),
    "shampoo": ("SOAP", "Shampoo", "ScalableShampoo", "DistributedShampoo"),
    "muon": ("Muon", "MuonWithAuxAdam", "SingleDeviceMuonWithAuxAdam"),
    "lion": ("Lion", "Lion8bit", "PagedLion", "PagedLion8bit", "FusedLion"),
    "adafactor": ("Adafactor", "AdafactorBigVision"),
    "sgd": ("SGD", "SGDW", "SGD8bit", "FusedSGD"),
}
FAMILIES: dict[str, Family] = {
    name: family for family, names in NAMES.items() for name in names
}
# By their classes, weight decay acts beside the gradient; of the others the param group
# may say so.
DECOUPLED = {
    *(name for name in NAMES["adam"] if "AdamW" in name),
    *("StableAdamW", "SGDW", "SOAP"),
}
DECOUPLED_FAMILIES = ("muon", "lion", "adafactor")
FLAGS = ("decoupled_weight_decay", "use_decoupled_weight_decay", "weight_decouple")
WRAPPED = ("optimizer", "original_optimizer", "optim")  # by accelerate, Opacus, ZeRO


class Kind(NamedTuple):
    """What decides how the numbers of a param group follow the batch.

    Attributes:
        family: Of its optimizer.
        decoupled: Whether weight decay acts beside the gradient (AdamW), not through it
            (L2 in the loss).
        name: Of its optimizer's class.
    """

    family: Family
    decoupled: bool = False
    name: str = ""


def kinds_of(optimizer: torch.optim.Optimizer) -> list[Kind]:
    """The kind of every param group, in their order.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(3))
        >>> kinds_of(torch.optim.AdamW([weight]))
        [Kind(family='adam', decoupled=True, name='AdamW')]
    """
    return [
        _kind(_inside(member), group)
        for member in members_of(optimizer)
        for group in member.param_groups
    ]


def rate_in(group: dict[str, Any]) -> float | None:
    """The learning rate of a param group; None where it holds none."""
    lr = group.get("lr")
    number = isinstance(lr, (numbers.Real, torch.Tensor)) and not isinstance(lr, bool)
    return float(lr) if number else None


def first_rate(optimizer: torch.optim.Optimizer) -> float | None:
    """The learning rate of the first param group; None where it holds none."""
    return rate_in(optimizer.param_groups[0])


def check_rates(optimizer: torch.optim.Optimizer, why: str) -> None:
    """Refuse an optimizer without a learning rate, where that is to be changed.

    Raises:
        SettingError: A param group holds none, such as ``lr=None``.
    """
    groups = enumerate(optimizer.param_groups)
    lacking = [(i, g.get("lr", "no such key")) for i, g in groups if rate_in(g) is None]
    if lacking:
        number, lr = lacking[0]
        raise SettingError(
            "the optimizer has no learning rate to change",
            seen=f"{kinds_of(optimizer)[number].name}, param group {number}: lr: {lr}",
            why=why,
            fix="lr=1e-3, or another number, in every param group; or keep batch and "
            "rate as they are (rule='none')",
        )


def _inside(optimizer: Any) -> torch.optim.Optimizer:
    """What a wrapper that keeps an optimizer wraps."""
    for name in WRAPPED:
        inner = getattr(optimizer, name, None)
        if isinstance(inner, torch.optim.Optimizer):
            return _inside(inner)
    return optimizer


def _kind(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> Kind:
    names = [kind.__name__ for kind in type(optimizer).__mro__]
    if group.get("use_muon") is False:  # Adam for the rest, inside of Muon's class
        return Kind("adam", True, names[0])
    # The nearest ancestor that is known decides.
    known: list[Family] = [FAMILIES[name] for name in names if name in FAMILIES]
    family = known[0] if known else "other"
    decoupled = (
        family in DECOUPLED_FAMILIES
        or not DECOUPLED.isdisjoint(names)
        or any(group.get(flag) for flag in FLAGS)
    )
    return Kind(family, decoupled, names[0])
