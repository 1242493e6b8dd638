"""The scaling rules."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch

import rightbatch as rb
from made_optimizers import of_class, of_torch, sgd


@pytest.mark.parametrize(
    ("rule", "more", "expected"),
    [
        ("linear", {}, 4.0),
        ("sqrt", {}, 2.0),
        ("noise-aware", {"noise_scale": 64.0}, 1.6),
        ("exponent", {"exponent": 0.75}, 4**0.75),
        ("none", {}, 1.0),
    ],
)
def test_rules(rule: Any, more: dict[str, float], expected: float) -> None:
    scaling = rb.scale_hyperparameters(
        sgd(), batch_from=64, batch_to=256, rule=rule, **more
    )
    assert scaling.lr == pytest.approx(expected)
    assert scaling.ema == (1.0 if rule == "none" else 4.0)
    with pytest.raises(rb.SettingError, match="belong together"):
        rb.scale_hyperparameters(sgd(), batch_from=1, batch_to=2, exponent=0.5)


DECAY = {"weight_decay": 0.1}
TWICE = {"lr": 0.2, "weight_decay": 0.2}  # from 16 to 64, the decay beside the gradient
MOMENTS = {"betas": (0.9, 0.98**4), "eps": 5e-9}


@pytest.mark.parametrize(
    ("optimizer", "rule", "expected"),
    [
        (of_torch("SGD", **DECAY), "linear", {"lr": 0.4, "weight_decay": 0.1}),
        (of_torch("Adam", betas=(0.9, 0.98)), "adam-sqrt", {"lr": 0.2} | MOMENTS),
        (of_torch("AdamW", betas=(0.9, 0.98), **DECAY), "adam-sqrt", TWICE | MOMENTS),
        (of_torch("Muon", **DECAY), "sqrt", TWICE | {"eps": 1e-7, "momentum": 0.95}),
        (of_torch("Adafactor", **DECAY), "sqrt", TWICE | {"eps": (None, 1e-3)}),
        (of_class("Lion", betas=(0.9, 0.99), **DECAY), "sqrt", TWICE),
        (
            of_class("SOAP", betas=(0.9, 0.98), eps=1e-8, shampoo_beta=-1, **DECAY),
            "adam-sqrt",
            TWICE | MOMENTS | {"shampoo_beta": -1},
        ),
        (of_class("Shampoo", momentum=0.9, **DECAY), "adam-sqrt", {"lr": 0.2} | DECAY),
    ],
)
def test_each_family_has_a_rule_of_its_own(
    optimizer: torch.optim.Optimizer, rule: str, expected: dict[str, Any]
) -> None:
    scaling = rb.scale_hyperparameters(optimizer, batch_from=16, batch_to=64)
    assert scaling.rule == rule
    group = optimizer.param_groups[0]
    for key, value in expected.items():
        assert group[key] == pytest.approx(value), key
    if type(optimizer).__name__ == "Lion":
        assert group["betas"] == (0.9, 0.99)  # the second is its momentum's


@pytest.mark.parametrize("name", ["Muon", "Adafactor"])
def test_updates_of_their_own_size_are_flat_above_the_noise_scale(name: str) -> None:
    optimizer = of_torch(name)
    scaling = rb.scale_hyperparameters(
        optimizer, batch_from=16, batch_to=64, noise_scale=64.0
    )
    assert scaling.rule == "sqrt-noise-aware"
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * math.sqrt(5 / 2))


@pytest.mark.parametrize(
    "optimizer",
    [
        of_class("Tiger", betas=(0.9, 0.99), eps=1e-8, **DECAY),
        of_class("Prodigy", betas=(0.9, 0.999), beta3=None, **DECAY),
        of_torch("Adadelta", **DECAY),
        of_torch("Rprop"),
    ],
)
def test_nothing_of_an_unknown_one_follows_and_that_is_told(
    optimizer: torch.optim.Optimizer,
) -> None:
    before = dict(optimizer.param_groups[0])
    name = type(optimizer).__name__
    with pytest.warns(UserWarning, match=f"{name}.*not known"):
        scaling = rb.scale_hyperparameters(optimizer, batch_from=16, batch_to=64)
    assert scaling.rule == "none"
    assert optimizer.param_groups[0] == before
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rb.scale_hyperparameters(optimizer, batch_from=16, batch_to=64, rule="sqrt")
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.2)


def test_who_knows_better_asks_for_a_rule_by_name() -> None:
    unknown = of_class("AdamLike", betas=(0.9, 0.98), eps=1e-8)
    rb.scale_hyperparameters(unknown, batch_from=16, batch_to=64, rule="adam-sqrt")
    assert unknown.param_groups[0]["betas"] == pytest.approx((0.9, 0.98**4))
    assert unknown.param_groups[0]["eps"] == pytest.approx(5e-9)
    muon = of_torch("Muon", **DECAY)  # has no such moments, whatever is asked for
    rb.scale_hyperparameters(muon, batch_from=16, batch_to=64, rule="adam-sqrt")
    assert muon.param_groups[0]["eps"] == 1e-7
    assert muon.param_groups[0]["lr"] == pytest.approx(0.2)


def test_several_optimizers_follow_each_by_its_own_rule() -> None:
    one, other = of_torch("SGD"), of_torch("AdamW", **DECAY)
    first = rb.scale_hyperparameters(
        [one, other], batch_from=16, batch_to=64, noise_scale=64.0
    )
    assert first.rule == "noise-aware"
    assert one.param_groups[0]["lr"] == pytest.approx(0.1 * 2.5)
    assert other.param_groups[0]["lr"] == pytest.approx(0.1 * math.sqrt(2.5))
    assert other.param_groups[0]["weight_decay"] == pytest.approx(0.4 / math.sqrt(2.5))
    unknown, known = of_class("Tiger"), of_torch("AdamW")
    with pytest.warns(UserWarning, match="Tiger"):
        rb.scale_hyperparameters(
            [unknown, known], batch_from=16, batch_to=64, noise_scale=64.0
        )
    assert unknown.param_groups[0]["lr"] == 0.1
    assert known.param_groups[0]["lr"] == pytest.approx(0.1 * math.sqrt(2.5))


def without_rate() -> torch.optim.Optimizer:
    """It has no learning rate, not even by name."""
    optimizer = of_class("Powered")
    del optimizer.param_groups[0]["lr"]
    return optimizer


@pytest.mark.parametrize("make", [without_rate, lambda: of_class("F", lr=None)])
def test_no_rate_to_scale_is_told(make: Any) -> None:
    optimizer = make()
    with pytest.raises(rb.SettingError, match="no learning rate to change") as told:
        rb.scale_hyperparameters(optimizer, batch_from=16, batch_to=64)
    assert type(optimizer).__name__ in told.value.seen
    rb.scale_hyperparameters(optimizer, batch_from=16, batch_to=64, rule="none")
    rb.scale_hyperparameters(optimizer, batch_from=16, batch_to=16, rule="sqrt")
