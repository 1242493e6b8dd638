"""What follows the batch, moved and moved back."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import rightbatch as rb
from made_optimizers import of_class, sgd


@settings(deadline=None)
@given(sizes=st.lists(st.integers(1, 5000), min_size=1, max_size=12))
def test_numbers_depend_on_the_batch_not_on_the_way_there(sizes: list[int]) -> None:
    weight = torch.nn.Parameter(torch.zeros(3))
    moved = torch.optim.AdamW([weight], lr=1e-3, betas=(0.9, 0.98))
    numbers = rb.schedules.Hyperparameters(moved, 64)
    for size in sizes:
        numbers.move(size)
    direct = torch.optim.AdamW([weight], lr=1e-3, betas=(0.9, 0.98))
    rb.scale_hyperparameters(direct, batch_from=64, batch_to=sizes[-1])
    for key in ("lr", "betas", "eps", "weight_decay"):
        assert moved.param_groups[0][key] == pytest.approx(direct.param_groups[0][key])
    numbers.move(64)
    assert moved.param_groups[0]["lr"] == pytest.approx(1e-3, rel=1e-12)


def test_a_move_is_made_whole_or_not_at_all_and_can_be_undone() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    adam = torch.optim.Adam([{"params": [weight], "lr": 0.1}], betas=(0.9, 0.95))
    weight.grad = torch.ones(3)
    adam.step()
    before = {k: v for k, v in adam.param_groups[0].items() if k != "params"}
    mean = adam.state[weight]["exp_avg_sq"].clone()
    numbers = rb.schedules.Hyperparameters(adam, 64, rule="adam-sde")
    with pytest.raises(rb.SettingError, match="beta1 would be negative"):
        numbers.move(64 * 11)
    assert {k: v for k, v in adam.param_groups[0].items() if k != "params"} == before
    numbers.move(128)
    assert adam.param_groups[0]["lr"] != before["lr"]
    numbers.undo()
    numbers.undo()  # nothing more to take back
    after = {k: v for k, v in adam.param_groups[0].items() if k != "params"}
    assert after == before
    torch.testing.assert_close(adam.state[weight]["exp_avg_sq"], mean)


def test_a_schedulers_factor_is_kept_and_its_base_follows() -> None:
    optimizer = sgd(0.1)
    lambda_lr = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    numbers = rb.schedules.Hyperparameters(optimizer, 64, scheduler=lambda_lr)
    optimizer.step()
    lambda_lr.step()
    numbers.move(128)  # linear: twice
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.5 * 2)
    optimizer.step()
    lambda_lr.step()  # computes the rate anew from its base
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.25 * 2)
    numbers.move(64)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.25)


def test_a_scheduler_that_counts_steps_is_noticed() -> None:
    optimizer = sgd()
    torch.optim.lr_scheduler.StepLR(optimizer, 10)
    numbers = rb.schedules.Hyperparameters(optimizer, 64)
    with pytest.warns(UserWarning, match="counts steps"):
        numbers.move(128)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        numbers.move(256)  # said once
        quiet = sgd()
        rb.schedules.Hyperparameters(quiet, 64).move(128)


S = torch.optim.lr_scheduler
SCHEDULERS: dict[str, Any] = {
    "sequential": lambda o: S.SequentialLR(
        o, [S.LinearLR(o, 0.1, 1.0, 4), S.CosineAnnealingLR(o, 40, 1e-3)], [4]
    ),
    "three stages (WSD)": lambda o: S.SequentialLR(
        o,
        [S.LinearLR(o, 0.1, 1.0, 3), S.ConstantLR(o, 1.0), S.LinearLR(o, 1.0, 0.0, 5)],
        [3, 12],
    ),
    "chained of sequential": lambda o: S.ChainedScheduler(
        [
            S.SequentialLR(o, [S.LinearLR(o, 0.1, 1.0, 3), S.StepLR(o, 2)], [3]),
            S.ExponentialLR(o, 0.9),
        ]
    ),
    "chained": lambda o: S.ChainedScheduler(
        [S.LinearLR(o, 0.1, 1.0, 4), S.ExponentialLR(o, 0.9)]
    ),
    "cyclic": lambda o: S.CyclicLR(o, 0.01, 0.1, 5, cycle_momentum=False),
    "cyclic with momentum": lambda o: S.CyclicLR(o, 0.01, 0.1, 5),
    "one cycle": lambda o: S.OneCycleLR(o, 0.1, total_steps=60),
    "cosine": lambda o: S.CosineAnnealingLR(o, 12, eta_min=0.02),
    "warm restarts": lambda o: S.CosineAnnealingWarmRestarts(o, 5, 2, eta_min=0.02),
    "lambda": lambda o: S.LambdaLR(o, lambda n: 0.97**n),
    "multiplicative": lambda o: S.MultiplicativeLR(o, lambda n: 0.97),
    "step": lambda o: S.StepLR(o, 7),
    "multi step": lambda o: S.MultiStepLR(o, [5, 9]),
    "polynomial": lambda o: S.PolynomialLR(o, 30, power=2.0),
    "exponential": lambda o: S.ExponentialLR(o, 0.95),
}
STAGES = rb.schedules.Stages(((0, 64), (128, 128), (512, 256), (1500, 32)))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_rate_is_the_schedulers_times_the_rules(name: str) -> None:
    """At every step, beside the same scheduler at the reference batch throughout."""
    groups: Any = [{"params": [torch.nn.Parameter(torch.zeros(1))]} for _ in range(2)]
    one = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    other = sgd(0.1, momentum=0.9)
    reference, made = SCHEDULERS[name](other), 0
    scheduler = rb.schedules.ByExamples(SCHEDULERS[name](one), batch_size=64)
    controller = rb.Controller(STAGES, one, 64, rule="linear", scheduler=scheduler)
    seen = 0
    while seen < 2500:
        factor = controller.batch_size / 64
        for group in one.param_groups:
            truth = other.param_groups[0]["lr"] * factor
            assert group["lr"] == pytest.approx(truth, rel=1e-12, abs=1e-15)
            assert group["momentum"] == other.param_groups[0]["momentum"]
        one.step()
        seen += controller.batch_size
        scheduler.step(controller.batch_size)
        while made < seen // 64:
            other.step()
            reference.step()
            made += 1
        controller(seen)


def test_schedulers_of_two_optimizers_beside_adam_and_one_cycle() -> None:
    """OneCycleLR moves Adam's first beta too; the second keeps its own rule."""
    made = []
    for _ in range(2):
        adam = torch.optim.AdamW(
            [torch.nn.Parameter(torch.zeros(1))], betas=(0.9, 0.98)
        )
        both = [sgd(0.1), adam]
        inner = [S.StepLR(both[0], 3), S.OneCycleLR(adam, 0.01, total_steps=40)]
        made.append((both, inner))
    (moved, inner), (fixed, reference) = made
    by = [rb.schedules.ByExamples(s, batch_size=16) for s in inner]
    numbers = rb.schedules.Hyperparameters(moved, 16, scheduler=by)
    for size in (16, 32, 64, 16, 64):
        numbers.move(size)
        ratio = size / 16
        assert moved[0].param_groups[0]["lr"] == pytest.approx(
            fixed[0].param_groups[0]["lr"] * ratio
        )
        here, there = moved[1].param_groups[0], fixed[1].param_groups[0]
        assert here["lr"] == pytest.approx(there["lr"] * ratio**0.5)
        assert here["betas"] == pytest.approx((there["betas"][0], 0.98**ratio))
        for optimizer in (*moved, *fixed):
            optimizer.step()
        for scheduler in by:
            scheduler.step(size)
        for scheduler in reference:
            for _ in range(size // 16):
                scheduler.step()


@pytest.mark.parametrize(
    "make",
    [
        SCHEDULERS["sequential"],
        SCHEDULERS["chained"],
        SCHEDULERS["cyclic"],
        SCHEDULERS["cosine"],  # to a floor of its own
        lambda o: S.ReduceLROnPlateau(o),
        lambda o: object(),
    ],
)
def test_a_bare_scheduler_that_cannot_follow_is_refused_by_name(make: Any) -> None:
    optimizer = sgd(0.1)
    scheduler = make(optimizer)
    name = type(scheduler).__name__
    with pytest.raises(rb.SettingError, match=f"{name} cannot follow"):
        rb.schedules.Hyperparameters(optimizer, 64, scheduler=scheduler)


def test_a_plateau_beside_it_is_kept() -> None:
    optimizer = sgd(0.1)
    plateau = S.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
    numbers = rb.schedules.Hyperparameters(optimizer, 64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        numbers.move(128)
    for _ in range(3):
        plateau.step(1.0)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.2 * 0.25)
    numbers.move(64)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.25)


def test_a_group_added_in_between_is_taken_as_of_the_batch_in_force() -> None:
    optimizer = sgd(0.1)
    numbers = rb.schedules.Hyperparameters(optimizer, 64)
    numbers.move(128, rate=0.5)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(2))], "lr": 3})
    numbers.move(512, rate=0.25)
    first, second = optimizer.param_groups
    assert first["lr"] == pytest.approx(0.1 * 8 * 0.25)
    assert second["lr"] == pytest.approx(3 / 0.5 * 4 * 0.25)
    numbers.undo()
    assert (first["lr"], second["lr"]) == pytest.approx((0.1 * 2 * 0.5, 3))
    numbers.move(512, rate=0.25)
    assert second["lr"] == pytest.approx(3 / 0.5 * 4 * 0.25)
    # And goes on from a state, into optimizers made the same way.
    again = sgd(0.1)
    numbers_again = rb.schedules.Hyperparameters(again, 64)
    with pytest.raises(rb.SettingError, match="other param groups") as lacking:
        numbers_again.load_state_dict(numbers.state_dict())
    assert lacking.value.seen == "2 then, 1 now"
    again.add_param_group({"params": [torch.nn.Parameter(torch.zeros(2))]})
    again.load_state_dict(optimizer.state_dict())
    numbers_again.load_state_dict(numbers.state_dict())
    numbers_again.move(64)
    assert again.param_groups[0]["lr"] == pytest.approx(0.1)
    assert again.param_groups[1]["lr"] == pytest.approx(3 / 0.5 / 2)


def test_groups_added_to_the_first_of_two_and_taken_away() -> None:
    first, second = sgd(0.1), sgd(0.01)
    numbers = rb.schedules.Hyperparameters([first, second], 64)
    numbers.move(128)
    first.add_param_group({"params": [torch.nn.Parameter(torch.zeros(2))], "lr": 1.0})
    numbers.move(256)
    rates = [group["lr"] for group in numbers.optimizer.param_groups]
    assert rates == pytest.approx([0.4, 2.0, 0.04])
    first.param_groups.pop(0)
    numbers.move(64)
    rates = [group["lr"] for group in numbers.optimizer.param_groups]
    assert rates == pytest.approx([0.5, 0.01])


def test_a_refused_move_keeps_what_others_have_changed_once() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    adam = torch.optim.Adam([weight], lr=0.1)
    numbers = rb.schedules.Hyperparameters(adam, 64, rule="adam-sde")
    adam.param_groups[0]["lr"] = 0.05  # a hand
    for _ in range(2):
        with pytest.raises(rb.SettingError, match="beta1"):
            numbers.move(64 * 11)
    assert adam.param_groups[0]["lr"] == 0.05
    numbers.move(256)
    assert adam.param_groups[0]["lr"] == pytest.approx(0.1)


def test_an_unknown_optimizer_is_told_once_and_a_missing_rate_refused() -> None:
    tiger = of_class("Tiger", betas=(0.9, 0.9))
    numbers = rb.schedules.Hyperparameters(tiger, 64)
    with pytest.warns(UserWarning, match="Tiger.*not known"):
        numbers.move(128)
    numbers.move(256)
    assert tiger.param_groups[0]["lr"] == 0.1
    tiger.param_groups[0]["lr"] = None
    for size, rate in ((128, 1.0), (64, 0.5)):
        with pytest.raises(rb.SettingError, match="no learning rate to change"):
            numbers.move(size, rate)
    assert numbers.batch_size == 256
    quiet = rb.schedules.Hyperparameters(tiger, 64, rule="none")
    quiet.move(128)
    assert tiger.param_groups[0] | {"lr": None} == tiger.param_groups[0]
