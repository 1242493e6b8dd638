"""Scaling rules: how the optimizer's numbers follow the batch."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import rightbatch as rb
from rightbatch.job.optimizers import decay_is_decoupled, optimizer_family
from rightbatch.schedules.scaling import scaling_for

powers = st.sampled_from([2**i for i in range(3, 11)])


@given(powers, powers, st.floats(1, 1e4))
def test_scaling_there_and_back_is_nothing(a: int, b: int, noise: float) -> None:
    for family in ("adam", "sgd"):
        there = scaling_for(family, a, b, noise_scale=noise, decoupled_decay=True)
        back = scaling_for(family, b, a, noise_scale=noise, decoupled_decay=True)
        for field in ("lr", "beta2", "eps", "weight_decay"):
            product = getattr(there, field) * getattr(back, field)
            assert product == pytest.approx(1.0)


@pytest.mark.parametrize("to", [2, 16, 128, 4096])
def test_a_warm_adam_takes_steps_of_the_size_it_should(to: int) -> None:
    """The second moment, bias-corrected, is the same before and after a change."""
    weight = torch.nn.Parameter(torch.ones(3))
    adam = torch.optim.AdamW([weight], lr=0.01, betas=(0.9, 0.999), eps=1e-12)
    for _ in range(50):
        weight.grad = torch.full((3,), 0.5)
        adam.step()

    def corrected() -> float:
        group, state = adam.param_groups[0], adam.state[weight]
        steps = float(state["step"])
        return float(state["exp_avg_sq"][0]) / (1 - group["betas"][1] ** steps)

    before = corrected()
    rb.scale_hyperparameters(adam, batch_from=16, batch_to=to)
    assert corrected() == pytest.approx(before, rel=1e-5)
    assert adam.param_groups[0]["betas"][1] >= 0.9  # however much the batch grows


def test_unknown_optimizers_take_the_careful_rule() -> None:
    class Own(torch.optim.AdamW):
        pass

    class Strange(torch.optim.Optimizer):
        def __init__(self, params: Any) -> None:
            super().__init__(params, {"lr": 0.1})

    weight = [torch.nn.Parameter(torch.ones(3))]
    families = [
        optimizer_family(kind(weight))
        for kind in (Own, Strange, torch.optim.Adagrad, torch.optim.SGD)
    ]
    assert families == ["adam", "other", "adam", "sgd"]
    assert scaling_for("other", 16, 64).lr == 2.0
    assert decay_is_decoupled(Own(weight))
    assert not decay_is_decoupled(torch.optim.SGD(weight, lr=0.1))


def test_the_noise_aware_rule_is_linear_below_and_flat_above() -> None:
    below = scaling_for("sgd", 8, 16, noise_scale=1e6).lr
    above = scaling_for("sgd", 8192, 16384, noise_scale=10).lr
    assert below == pytest.approx(2.0, rel=1e-3)
    assert above == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize(
    "kind", [torch.optim.AdamW, torch.optim.RMSprop, torch.optim.SGD]
)
def test_every_param_group_follows(kind: Any) -> None:
    params = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    optimizer = kind(
        [{"params": [params[0]], "lr": 0.1}, {"params": [params[1]]}], lr=0.2
    )
    torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    before = [dict(g) for g in optimizer.param_groups]
    done = rb.scale_hyperparameters(optimizer, batch_from=64, batch_to=16)
    for old, new in zip(before, optimizer.param_groups, strict=True):
        assert new["lr"] == pytest.approx(old["lr"] * done.lr)
        assert new["initial_lr"] == pytest.approx(old["initial_lr"] * done.lr)
        if "betas" in old:
            assert new["betas"] == (old["betas"][0], old["betas"][1] ** 0.25)
            assert new["weight_decay"] == pytest.approx(old["weight_decay"] * 0.5)
            assert new["eps"] == pytest.approx(old["eps"] * 2)
        if "alpha" in old:
            assert new["alpha"] == pytest.approx(old["alpha"] ** 0.25)


def test_a_rule_outside_its_domain_changes_nothing() -> None:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))], lr=0.1)
    before = dict(optimizer.param_groups[0])
    with pytest.raises(rb.SettingError, match="beta1 would be negative"):
        rb.scale_hyperparameters(optimizer, batch_from=8, batch_to=128, rule="adam-sde")
    assert optimizer.param_groups[0] == before


def test_settings_without_effect_are_said() -> None:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))], lr=0.1)
    with pytest.warns(UserWarning, match="no effect"):
        rb.scale_hyperparameters(
            optimizer, batch_from=8, batch_to=16, rule="adam-sqrt", noise_scale=50.0
        )
    for bad in ({"rule": "cubic"}, {"rule": "noise-aware"}, {"batch_to": 0}):
        given: dict[str, Any] = {"batch_from": 8, "batch_to": 16, **bad}
        with pytest.raises(rb.SettingError):
            rb.scale_hyperparameters(optimizer, **given)


def test_the_sde_rule_keeps_decay_per_example() -> None:
    s = scaling_for("adam", 16, 64, rule="adam-sde", decoupled_decay=True)
    assert (s.lr, s.beta1, s.beta2, s.eps) == (2.0, 4.0, 4.0, 0.5)
    assert s.lr * s.weight_decay == pytest.approx(4.0)
    assert math.isclose(scaling_for("sgd", 16, 64).lr, 4.0)
