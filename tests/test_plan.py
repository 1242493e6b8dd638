"""Decisions against brute force, limits, the race, and the scaling rules."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import rightbatch as rb
from cases import made_up, optimum, raced
from reference import relative_time
from rightbatch.job.optimizers import decay_is_decoupled, optimizer_family
from rightbatch.measure.record import MetricPoint
from rightbatch.plan.choice import choose
from rightbatch.plan.objectives import objective_named
from rightbatch.schedules.scaling import scaling_for

powers = st.sampled_from([2**i for i in range(3, 11)])


@settings(max_examples=15, deadline=None)
@given(st.floats(1e-4, 1e-1), st.floats(1e-5, 1e-2), st.floats(4, 4000), powers)
def test_the_choice_is_the_argmin(
    t0: float, t1: float, critical: float, today: int
) -> None:
    found = made_up(t0=t0, t1=t1, critical=critical, today=today)
    choice = choose(found)
    candidates = {o.batch_size for o in choice.options}
    single = [o for o in choice.options if o.accumulation == 1]
    for o in single:
        expected = relative_time(t0, t1, critical, o.batch_size, today)
        if today <= 128:  # today's batch is timed whole, not accumulated
            assert o.time.value == pytest.approx(expected, rel=2e-3)
    best = optimum(t0, t1, critical)
    if 2 <= best <= 128:
        assert choice.chosen.batch_size / 2 <= best <= choice.chosen.batch_size * 2
    assert today in candidates
    low, high = choice.flat
    assert low <= choice.chosen.batch_size <= high


def test_closed_form_is_said_with_its_numbers() -> None:
    plan = rb.decide(made_up(t0=4e-3, t1=1e-3, critical=100)).plan
    assert plan.batch_size in (16, 32)
    text = {r.topic: r.text for r in plan.why}["optimum"]
    assert text == "B_opt = sqrt(B_crit * t0 / t1) = sqrt(100 * 4 ms / 1 ms) = 20"


def test_memory_forces_accumulation() -> None:
    found = made_up(t0=0.1, t1=1e-4, critical=1000)
    free = choose(found)
    assert free.chosen.batch_size >= 128
    tight = choose(found, memory_bytes=10_000_000 + 33 * 100_000)
    assert tight.chosen.micro_batch == 32
    assert (
        tight.chosen.batch_size == tight.chosen.micro_batch * tight.chosen.accumulation
    )
    with pytest.raises(rb.SettingError, match="not even one example"):
        choose(found, memory_bytes=9_000_000)


def with_run(steps: int) -> Any:
    """Measurements whose run met its target after so many steps."""
    found = made_up()
    job = replace(found.job, has_evaluate=True, target=1.0)
    metrics = (
        MetricPoint(step=1, examples=64, metric=3.0),
        MetricPoint(step=steps, examples=64 * steps, metric=0.9),
    )
    return replace(found, job=job, metrics=metrics)


def test_deadlines() -> None:
    found = with_run(1000)
    choice = choose(found)
    assert choice.chosen.seconds is not None
    least = choice.chosen.seconds.value
    critical, t0, t1 = 64, 2e-3, 5e-4
    b = choice.chosen.batch_size
    steps = 1000 * (1 + critical / b) / 2
    assert least == pytest.approx(steps * (t0 + t1 * b), rel=1e-2)
    fewest = choose(found, rb.objectives.Examples(), deadline_s=1.3 * least)
    unlimited = choose(found, rb.objectives.Examples())
    assert unlimited.chosen.batch_size < fewest.chosen.batch_size or (
        unlimited.chosen.time.value <= 1.3 * choice.chosen.time.value
    )
    assert fewest.chosen.seconds is not None
    assert fewest.chosen.seconds.value <= 1.3 * least
    with pytest.raises(rb.UnidentifiedError, match="no batch size meets"):
        choose(found, deadline_s=0.5 * least)
    with pytest.raises(rb.UnidentifiedError, match="cannot be judged"):
        choose(made_up(), deadline_s=10)


def test_fewest_examples_are_smaller_batches() -> None:
    found = made_up(t0=0.1, t1=1e-3, critical=100)
    fewest, fastest = choose(found, rb.objectives.Examples()), choose(found)
    assert fewest.chosen.batch_size < fastest.chosen.batch_size
    least = min(o.examples.value for o in fewest.options)
    assert fewest.chosen.examples.value <= 1.1 * least


def test_the_race_wins_where_it_disagrees() -> None:
    found = made_up(t0=4e-3, t1=1e-3, critical=100)
    model = choose(found).chosen.batch_size
    other = model * 2
    lost = raced(
        found, {model: (0.8, 0.75, 0.85), other: (1.5, 1.4, 1.6), 64: (1, 1, 1)}
    )
    choice = choose(lost)
    assert (choice.chosen.batch_size, choice.decided_by) == (other, "race")
    plan = rb.decide(lost).plan
    assert any(r.topic == "race" and "race decides" in r.text for r in plan.why)
    # Not told apart: the laws stay.
    close = raced(
        found, {model: (1.0, 0.8, 1.2), other: (1.1, 0.9, 1.3), 64: (1, 1, 1)}
    )
    assert choose(close).chosen.batch_size == model
    # A race in time says nothing about the fewest examples.
    assert choose(lost, rb.objectives.Examples()).decided_by == "laws"


def test_race_against_laws_is_undecided() -> None:
    found = made_up(t0=4e-3, t1=1e-3, critical=100)
    model = choose(found).chosen.batch_size
    plan = rb.decide(raced(found, {model: (0.7, 0.6, 0.8), 64: (1, 1, 1)})).plan
    assert plan.batch_size == 64  # still the best guess
    assert not plan.decided
    assert "contradict" in plan.verdict
    assert "0.6 to 0.8" in plan.verdict


def test_today_is_kept_where_race_and_laws_agree() -> None:
    found = made_up(t0=4e-3, t1=1e-3, critical=100, today=16)
    assert choose(found).chosen.batch_size == 16
    rivals = {8: (0.9, 0.8, 1.0), 32: (0.95, 0.85, 1.05), 16: (1, 1, 1)}
    plan = rb.decide(raced(found, rivals)).plan
    assert plan.decided
    assert plan.verdict.startswith("Keep B = 16")


def test_laws_alone_are_worth_trying_and_no_verdict() -> None:
    found = made_up(t0=0.05, t1=1e-4, critical=1000)
    choice = choose(found)
    assert choice.sure
    assert not choice.decided
    plan = rb.decide(found).plan
    assert plan.verdict.startswith(f"Worth trying: B = {plan.batch_size}")
    assert "none was run" in plan.verdict
    time = choice.chosen.time
    candidates = {
        plan.batch_size: (1 / time.value, 1 / time.high, 1 / time.low),
        64: (1, 1, 1),
    }
    # A hundredth of ten passes over 100,000 examples: 157 steps of 64.
    assert choose(raced(found, candidates, steps=157)).decided
    short = rb.decide(raced(found, candidates, steps=156)).plan
    assert not short.decided
    assert "trained on 9,980" in short.verdict
    # With a target reached the run is known: 1,000 steps, so ten are a hundredth.
    reached = with_run(1000)
    for steps, decided in ((10, True), (9, False)):
        best = choose(reached).chosen
        rivals = {
            best.batch_size: (1 / best.time.value, 1 / best.time.high, 2.0),
            64: (1, 1, 1),
        }
        assert choose(raced(reached, rivals, steps=steps)).decided is decided
    # An objective whose batch did not race is not proven by the race of another.
    cheap = made_up(t0=0.1, t1=1e-3, critical=100)
    time = choose(cheap).chosen.time
    won = {choose(cheap).chosen.batch_size: (1 / time.value, 1 / time.high, 9)}
    assert choose(raced(cheap, {**won, 64: (1, 1, 1)})).decided
    assert not choose(
        raced(cheap, {**won, 64: (1, 1, 1)}), rb.objectives.Examples()
    ).decided


def test_noise_that_tells_nothing_is_undecided() -> None:
    # The optimum runs from below 64 to thousands with the critical batch, whose signal
    # is not told from zero.
    sizes = (1, 4, 16, 64, 256, 1024, 4096)
    found = made_up(t0=0.05, t1=1e-4, sizes=sizes, spread=3.0, points=2)
    plan = rb.decide(found).plan
    assert not plan.decided
    assert plan.verdict.startswith("Undecided")


def test_a_race_that_tells_nothing_settles_nothing() -> None:
    sizes = (1, 4, 16, 64, 256, 1024, 4096)
    found = made_up(t0=0.05, t1=1e-4, sizes=sizes, spread=3.0, points=2)
    chosen = choose(found).chosen.batch_size
    wide = {chosen: (1.5, 0.5, 4.0), 64: (1.0, 1.0, 1.0)}
    assert not choose(raced(found, wide)).decided
    clear = {chosen: (1.5, 1.4, 1.6), 64: (1.0, 1.0, 1.0)}
    assert choose(raced(found, clear)).decided
    still = raced(found, clear)
    assert still.race is not None
    candidates = tuple(
        replace(candidate, metrics=(2.0, 2.0, 2.0))
        for candidate in still.race.candidates
    )
    still = replace(still, race=replace(still.race, candidates=candidates))
    assert not choose(still).decided  # nobody left the start


def test_a_lane_counts_only_for_the_split_it_ran() -> None:
    found = made_up(t0=4e-3, t1=1e-3, critical=100)
    fast = raced(found, {128: (3.0, 2.9, 3.1), 16: (1.1, 1.0, 1.2), 64: (1, 1, 1)})
    assert choose(fast).chosen.batch_size == 128
    tight = choose(fast, memory_bytes=10_000_000 + 17 * 100_000)
    assert tight.chosen.batch_size != 128  # raced whole, it would have to be split


def test_no_signal_at_all_is_undecided_and_says_at_least() -> None:
    found = made_up()
    silent = replace(found.noise[0].plain, grad_norm_sq=-0.05)
    noise = tuple(replace(p, plain=silent) for p in found.noise)
    plan = rb.decide(replace(found, noise=noise)).plan
    assert not plan.decided
    assert "inf" not in " ".join([plan.verdict, *(r.text for r in plan.why)])
    assert "What would settle it" in plan.verdict


def test_amounts_are_told() -> None:
    found = with_run(1000)
    for goal, topic in (
        (rb.objectives.Money(per_hour=3.0), "money"),
        (rb.objectives.Energy(watts=65), "energy"),
    ):
        plan = rb.decide(found, goal).plan
        reason = next(r for r in plan.why if r.topic == topic)
        hours = plan.predicted["seconds_to_target"].value / 3600
        expected = hours * (3.0 if topic == "money" else 65)
        assert next(iter(reason.numbers.values())) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["time", "examples", "money"])
def test_objectives_by_name(name: str) -> None:
    assert choose(made_up(), objective_named(name)).objective.name == name


def test_energy_needs_power_and_is_labelled() -> None:
    with pytest.raises(rb.SettingError, match="neither measured nor given"):
        rb.decide(made_up(), objective_named("energy"))
    plan = rb.decide(made_up(), objective_named("energy", watts=65)).plan
    assert any("modelled" in text for text in plan.limits)
    for name, more in (("time", {"watts": 3.0}), ("energy", {"price": 1.0})):
        with pytest.raises(rb.SettingError, match="no effect"):
            objective_named(name, **more)


# Learning rates


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
