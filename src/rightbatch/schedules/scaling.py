"""How learning rate, betas, epsilon and weight decay follow the batch, rule by rule."""

from __future__ import annotations

import math
import numbers
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import torch

from rightbatch.core.errors import SettingError
from rightbatch.core.whole_number import whole_number
from rightbatch.job.optimizers import Family, Kind, check_rates, kinds_of
from rightbatch.job.several_optimizers import Optimizers, as_one

Rule = Literal[
    "auto",
    "linear",
    "sqrt",
    "noise-aware",
    "sqrt-noise-aware",
    "adam-noise-aware",
    "adam-sqrt",
    "adam-sde",
    "exponent",
    "none",
]
SOURCES = {
    "linear": "Goyal et al. 2017, arXiv:1706.02677",
    "sqrt": "Krizhevsky 2014, arXiv:1404.5997; Hoffer et al. 2017, arXiv:1705.08741",
    "noise-aware": "McCandlish et al. 2018, arXiv:1812.06162, eq. 2.11",
    "sqrt-noise-aware": "McCandlish et al. 2018, eq. 2.11, for updates of a size of "
    "their own [derived: docs/decisions/007, 016]",
    "adam-noise-aware": "McCandlish et al. 2018, eq. 2.11, under Adam's normalisation "
    "[derived: docs/decisions/007]; below the noise scale Malladi et al. 2022, "
    "arXiv:2205.10287; beta2: Marek et al. 2025, arXiv:2507.07101",
    "adam-sqrt": "Malladi et al. 2022, arXiv:2205.10287; beta2 as a half-life in "
    "examples, beta1 kept: Marek et al. 2025, arXiv:2507.07101",
    "adam-sde": "Malladi et al. 2022, arXiv:2205.10287",
    "exponent": "measured on this job: lr proportional to B ** exponent",
    "none": "nothing follows the batch",
}
# Families whose second beta is the memory of a second moment, and whose epsilon stands
# beside its root. Lion's second beta is its momentum's, Muon's epsilon guards a norm,
# Adafactor's are a pair of floors.
MOMENTS = ("adam", "shampoo")
# Below this beta2 the second moment follows single batches and Adam diverges: digits at
# B = 256 under AdamW ended at loss 0.4 with beta2 0.95, at 0.5 to 2.1 with 0.44, and
# beyond 5,000 with 0.04 [measured]. So growing a batch never lowers beta2 further.
LEAST_BETA2 = 0.9
# The rates that torch's schedulers keep in a param group beside its present one.
RATES = ("lr", "initial_lr", "max_lr", "min_lr")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """What one rule does to an optimizer's numbers when the batch changes.

    Attributes:
        rule: Name of the rule.
        source: Where it comes from.
        reason: Why this rule, in one sentence.
        batch_from: The batch the present numbers were chosen for.
        batch_to: The batch they are changed to.
        lr: Factor on every learning rate.
        beta1: Power of beta1 that keeps its meaning: ``1 - power * (1 - beta1)``.
        beta2: ``beta2 ** power``: its half-life in examples stays, but growing the
            batch does not take it below ``LEAST_BETA2``.
        eps: Factor on epsilon.
        weight_decay: Factor on decoupled weight decay, so that decay per example
            stays; 1 for L2 in the loss, whose minimum does not depend on the batch.
        ema: Power of the decay of an average of weights, see `scaled_ema`.
        noise_scale: That it was made from, in examples; None: from none.
        exponent: Of the rule ``"exponent"``.
        auto: Whether the rule was chosen by the optimizer's family: param groups of
            another family then have a rule of their own.
    """

    rule: str
    source: str
    reason: str
    batch_from: int
    batch_to: int
    lr: float
    beta1: float = 1.0
    beta2: float = 1.0
    eps: float = 1.0
    weight_decay: float = 1.0
    ema: float = 1.0
    noise_scale: float | None = None
    exponent: float | None = None
    auto: bool = False

    @property
    def asked(self) -> str:
        """What it was made from, for other param groups: a rule, or ``"auto"``."""
        return "auto" if self.auto else self.rule

    def of(self, kind: Kind) -> Scaling:
        """The same change of the batch for a param group of this kind."""
        return scaling_for(
            kind.family,
            self.batch_from,
            self.batch_to,
            rule=self.asked,
            noise_scale=self.noise_scale,
            exponent=self.exponent,
            decoupled_decay=kind.decoupled,
        )


def scaling_for(
    family: Family,
    batch_from: int,
    batch_to: int,
    *,
    rule: str = "auto",
    noise_scale: float | None = None,
    exponent: float | None = None,
    decoupled_decay: bool = False,
) -> Scaling:
    """Work out how an optimizer's numbers follow the batch.

    With ratio r = B'/B, ``auto`` goes by the family:

    - SGD: ``noise-aware``, lr proportional to 1 / (1 + noise_scale / B), which is the
      linear rule while both batches are far below the noise scale; without a noise
      scale ``linear``.
    - Adam, SOAP and Shampoo: ``adam-noise-aware``, lr proportional to
      1 / sqrt(1 + noise_scale / B), which is the square root below the noise scale;
      without one ``adam-sqrt``, lr times sqrt(r). Both take eps over sqrt(r), beta2 to
      the power r, and leave beta1.
    - Muon, Lion, Adafactor: ``sqrt-noise-aware`` and ``sqrt``, the same of the rate
      alone.
    - Any other: ``none``.

    Decoupled weight decay follows in all but ``none``. ``adam-sde`` is the full rule of
    Malladi et al., beta1 included; docs/decisions/003 says why it is not the default.
    An ``adam-`` rule asked for by name changes betas and eps of families that have such
    moments, and of an optimizer that is not known.

    Args:
        family: Of the optimizer, see `rightbatch.job.optimizers.kinds_of`.
        batch_from: The batch the learning rate was chosen for, in examples.
        batch_to: The batch to change to, in examples.
        rule: A rule by name, or ``"auto"``.
        noise_scale: Noise scale in examples, where known.
        exponent: For the rule ``"exponent"``: that of the best learning rate in B, as
            measured by runs of one's own.
        decoupled_decay: Whether weight decay acts beside the gradient, as AdamW's.

    Raises:
        SettingError: Unknown rule, a batch below 1, or a rule outside its domain.

    Example:
        >>> scaling_for("sgd", 64, 256).lr, scaling_for("adam", 64, 256).lr
        (4.0, 2.0)

    References:
        ``SOURCES``, rule by rule.
    """
    batch_from = whole_number(batch_from, "batch_from")
    batch_to = whole_number(batch_to, "batch_to")
    known = noise_scale is not None and 0 < noise_scale < math.inf
    name, reason = rule, "chosen by name"
    if rule == "auto":
        name, reason = _auto(family, known)
    if name not in SOURCES:
        raise SettingError(
            f"there is no scaling rule {name!r}",
            fix=f"one of auto, {', '.join(SOURCES)}",
        )
    if "noise-aware" in name and not known:
        raise SettingError(
            f"the rule {name} needs a noise scale",
            seen=f"noise_scale={noise_scale}",
            fix="pass noise_scale=... in examples, or rule='linear'",
        )
    if (name == "exponent") != (exponent is not None):
        raise SettingError(
            "the rule 'exponent' and an exponent belong together",
            seen=f"rule={rule!r}, exponent={exponent}",
            fix="rule='exponent', exponent=0.7: measured by the best rates at two or "
            "more batches",
        )
    ratio, noise = batch_to / batch_from, noise_scale or 0.0
    root = math.sqrt(ratio)
    saturating = (1 + noise / batch_from) / (1 + noise / batch_to)
    lr = {
        "none": 1.0,
        "linear": ratio,
        "sqrt": root,
        "noise-aware": saturating,
        "sqrt-noise-aware": math.sqrt(saturating),
        "adam-noise-aware": math.sqrt(saturating),
        "adam-sqrt": root,
        "adam-sde": root,
        "exponent": ratio ** (exponent or 0.0),
    }[name]
    by_noise = known and ("noise-aware" in name or rule == "auto")
    # The memory of second moments, in examples.
    asked_for = name.startswith("adam-") and family == "other"
    moving = name.startswith("adam-") or name == "exponent"
    moments = asked_for or (moving and family in MOMENTS)
    return Scaling(
        rule=name,
        source=SOURCES[name],
        reason=reason,
        batch_from=batch_from,
        batch_to=batch_to,
        lr=lr,
        beta1=ratio if name == "adam-sde" and moments else 1.0,
        beta2=ratio if moments else 1.0,
        eps=1 / root if moments else 1.0,
        # AdamW's decay per example is lr * weight_decay / B (Wang & Aitchison 2024,
        # arXiv:2405.13698).
        weight_decay=ratio / lr if decoupled_decay and name != "none" else 1.0,
        ema=1.0 if name == "none" else ratio,
        noise_scale=noise_scale if by_noise else None,
        exponent=exponent,
        auto=rule == "auto",
    )


def _auto(family: Family, known: bool) -> tuple[str, str]:
    """The rule for a family of optimizers, and why; ``known``: the noise scale is."""
    if family == "other":
        return "none", "the optimizer is not known to the rules"
    if family == "sgd" and known:
        return "noise-aware", "linear below the noise scale, flat above it"
    if family == "sgd":
        return "linear", "no noise scale known"
    root = "adam" if family in MOMENTS else "sqrt"
    why = "the size of the optimizer's update is not the gradient's"
    if known:
        name = f"{root}-noise-aware"
        return name, f"root below the noise scale, flat above; {why}"
    return "adam-sqrt" if root == "adam" else "sqrt", why


def warn_of_unknown(kinds: list[Kind], *, stacklevel: int = 3) -> None:
    """Tell that nothing of an optimizer follows the batch, because it is not known."""
    names = sorted({kind.name for kind in kinds if kind.family == "other"})
    if names:
        warnings.warn(
            f"{', '.join(names)}: how this optimizer's numbers follow the batch is not "
            "known, so none of them does (rule 'none'); if you know, ask for a rule by "
            "name: rule='sqrt', 'linear', or 'adam-sqrt' where it is Adam inside",
            stacklevel=stacklevel,
        )


def scaled_beta2(beta2: float, scaling: Scaling) -> float:
    """Beta2 after a change of batch; growing the batch keeps it at 0.9 or above."""
    return max(beta2**scaling.beta2, min(beta2, LEAST_BETA2))


def scaled_ema(decay: float, scaling: Scaling) -> float:
    """The decay of an average of weights that keeps its memory in examples.

    Busbridge et al. 2023, arXiv:2307.13813.

    Example:
        >>> round(scaled_ema(0.999, scaling_for("sgd", 64, 256)), 6)
        0.996006
    """
    return decay**scaling.ema


def apply_scaling(optimizer: torch.optim.Optimizer, scaling: Scaling) -> None:
    """Change an optimizer's param groups by a `Scaling`, all of them or none.

    Each goes by its own family, see `scaling_for`. ``initial_lr``, from which
    learning-rate schedulers start, changes with ``lr``. Adam's running means are
    rescaled so that, bias-corrected, they stay what they are: the division by
    ``1 - beta ** steps`` would otherwise use the new beta on a mean made with the old
    one, and the next updates would be off by as much.

    Raises:
        SettingError: The rule leaves its domain: a beta would fall below zero; or there
            is no learning rate to change.
    """
    if scaling.asked != "none" and scaling.batch_from != scaling.batch_to:
        check_rates(optimizer, "it is to follow the batch")
    groups = zip(optimizer.param_groups, kinds_of(optimizer), strict=True)
    assign(optimizer, [scaled_group(g, scaling.of(kind)) for g, kind in groups])


def multiply_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Multiply the learning rates of every param group, a scheduler's base too.

    Raises:
        SettingError: A group holds none.
    """
    if factor == 1:
        return
    check_rates(optimizer, f"it is to be multiplied by {factor:.4g}")
    for group in optimizer.param_groups:
        group.update({k: group[k] * factor for k in RATES if group.get(k) is not None})


def assign(optimizer: torch.optim.Optimizer, numbers: list[dict[str, Any]]) -> None:
    """Set numbers of the param groups, keeping Adam's bias-corrected means."""
    state = optimizer.state
    for group, new in zip(optimizer.param_groups, numbers, strict=True):
        if "betas" in new and new["betas"] != group["betas"]:
            for parameter in group["params"]:
                _keep_means(state.get(parameter, {}), group, new)
        group.update(new)


def _keep_means(
    state: dict[str, Any], group: dict[str, Any], new: dict[str, Any]
) -> None:
    steps = float(state.get("step", 0))
    if steps < 1:
        return
    for key, old_beta, beta in (
        ("exp_avg", group["betas"][0], new["betas"][0]),
        ("exp_avg_sq", group["betas"][1], new["betas"][1]),
        ("max_exp_avg_sq", group["betas"][1], new["betas"][1]),
    ):
        if key in state and beta != old_beta:
            state[key].mul_((1 - beta**steps) / (1 - old_beta**steps))


def scaled_group(group: dict[str, Any], scaling: Scaling) -> dict[str, Any]:
    """The numbers of one param group under a scaling; the group is left as it is.

    Raises:
        SettingError: A beta would fall below zero.
    """
    new: dict[str, Any] = {}
    factors = {
        **dict.fromkeys(RATES, scaling.lr),
        "eps": scaling.eps,
        "weight_decay": scaling.weight_decay,
    }
    for key, factor in factors.items():
        value = group.get(key)
        # Capturable optimizers keep the rate as a tensor.
        if isinstance(value, (numbers.Real, torch.Tensor)):
            new[key] = value * factor
    betas = group.get("betas")
    if isinstance(betas, tuple):
        beta1 = 1 - scaling.beta1 * (1 - betas[0])
        if beta1 < 0:
            raise SettingError(
                f"the rule {scaling.rule} has left its domain: beta1 would be negative",
                seen=f"beta1 {betas[0]}, batch {scaling.batch_from} to "
                f"{scaling.batch_to}: 1 - {scaling.beta1:g} x {1 - betas[0]:g}",
                fix="rule='adam-sqrt', or a smaller change of the batch",
            )
        new["betas"] = (beta1, scaled_beta2(betas[1], scaling), *betas[2:])
    alpha = group.get("alpha")  # RMSprop's name for beta2
    if isinstance(alpha, float):
        new["alpha"] = scaled_beta2(alpha, scaling)
    return new


def scale_hyperparameters(
    optimizer: Optimizers,
    *,
    batch_from: int,
    batch_to: int,
    rule: Rule = "auto",
    noise_scale: float | None = None,
    exponent: float | None = None,
) -> Scaling:
    """Make an optimizer's learning rate, betas, eps and weight decay follow the batch.

    Args:
        optimizer: One, or a list of several; changed in place, every param group by
            the rule of its family.
        batch_from: The batch its present numbers were chosen for, in examples.
        batch_to: The batch to change to, in examples.
        rule: How they follow; ``"auto"``: by the optimizer, and the noise scale where
            it is known, see `rightbatch.schedules.scaling.scaling_for`.
        noise_scale: Noise scale in examples, for the noise-aware rules.
        exponent: For the rule ``"exponent"``.

    Returns:
        What was done to the first param group, with the rule's name and source.

    Raises:
        SettingError: Unknown rule, a batch below 1, a rule outside its domain, or no
            learning rate to change: then nothing has changed.

    Example:
        >>> import torch, rightbatch as rb
        >>> weight = torch.nn.Parameter(torch.zeros(3))
        >>> sgd = torch.optim.SGD([weight], lr=0.1)
        >>> rb.scale_hyperparameters(sgd, batch_from=64, batch_to=128).rule
        'linear'
        >>> sgd.param_groups[0]["lr"]
        0.2

    References:
        ``rightbatch.schedules.scaling.SOURCES``, rule by rule.
    """
    optimizer = as_one(optimizer)
    kinds = kinds_of(optimizer)
    scaling = scaling_for(
        kinds[0].family,
        batch_from,
        batch_to,
        rule=rule,
        noise_scale=noise_scale,
        exponent=exponent,
        decoupled_decay=kinds[0].decoupled,
    )
    if noise_scale is not None and scaling.noise_scale is None:
        warnings.warn(
            f"noise_scale has no effect on the rule {scaling.rule}", stacklevel=2
        )
    apply_scaling(optimizer, scaling)
    if rule == "auto":
        warn_of_unknown(kinds)
    return scaling
