"""Schedules against their formulas, their invariants, and what refuses to run."""

from __future__ import annotations

import json
import math
import types
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import rightbatch as rb
from rightbatch.schedules.from_json import check_schedule, schedule_from
from rightbatch.schedules.parse import parse_examples, parse_rate, parse_schedule
from rightbatch.schedules.schedule import Reading, Schedule

DECAY = rb.schedules.Rate.cosine(100_000, floor=0.02)
ALL: list[Schedule] = [
    rb.schedules.Constant(64),
    rb.schedules.Stages(((0, 64), (500, 96), (9_000, 32))),
    rb.schedules.Ramp(16, 256, 50_000),
    rb.schedules.Ramp(256, 16, 50_000, form="geometric"),
    rb.schedules.Anneal(32, 512, 80_000),
    rb.schedules.Anneal(32, 512, 80_000, form="logarithmic"),
    rb.schedules.InsteadOfDecay(64, DECAY, 512),
    rb.schedules.InsteadOfDecay(64, DECAY, 512, form="seesaw"),
    rb.schedules.AlongRate(512, DECAY),
    rb.schedules.AlongRate(8192, DECAY, keep="update-variance"),
    rb.schedules.FollowNoise(64, half_batch=45.5, most=1024),
    rb.schedules.FollowNoise(64, fraction=0.5),
    rb.schedules.SignalToNoise(64, most=4096),
]


@pytest.mark.parametrize("schedule", ALL, ids=str)
def test_every_schedule_goes_to_json_and_back(schedule: Schedule) -> None:
    plain = json.loads(json.dumps(schedule.to_plain(), allow_nan=False))
    assert schedule_from(plain) == schedule
    assert len(str(schedule)) < 150
    assert "\n" not in str(schedule)
    table = schedule.table(100_000)
    assert all(len(line) <= 80 or schedule.live for line in table.splitlines())


@pytest.mark.parametrize("schedule", [s for s in ALL if not s.live], ids=str)
@given(examples=st.integers(0, 200_000))
def test_every_schedule_is_a_function_of_examples_within_its_limits(
    schedule: Schedule, examples: int
) -> None:
    batch = schedule.batch_size(examples)
    assert batch == schedule.batch_size(examples)
    assert 1 <= batch <= schedule.largest(math.inf)
    assert batch <= schedule.largest(examples + 1)


@given(st.integers(0, 120_000))
def test_smith_has_the_temperature_of_the_decay(examples: int) -> None:
    """lr / B at every example what the decay makes of it, also beyond the limit."""
    aim = rb.schedules.InsteadOfDecay(64, DECAY, 512).aim(examples)
    assert aim.rate / aim.batch == pytest.approx(DECAY(examples) / 64, rel=1e-9)
    if DECAY(examples) > 64 / 512:
        assert aim.rate == pytest.approx(1.0, rel=0.01)  # whole examples


@given(st.integers(0, 120_000))
def test_seesaw_keeps_lr_over_the_root_of_the_batch(examples: int) -> None:
    aim = rb.schedules.InsteadOfDecay(64, DECAY, 512, form="seesaw").aim(examples)
    expected = DECAY(examples) / math.sqrt(64)
    assert aim.rate / math.sqrt(aim.batch) == pytest.approx(expected, rel=1e-9)


@given(st.integers(0, 120_000))
def test_along_a_rate_the_batch_shrinks_and_one_quantity_stays(examples: int) -> None:
    """Per update: variance lr^2 / B. Growing the batch as some texts say breaks it."""
    factor = DECAY(examples)
    temperature = rb.schedules.AlongRate(100_000, DECAY).aim(examples)
    assert temperature.rate / temperature.batch == pytest.approx(1e-5, rel=1e-3)
    variance = rb.schedules.AlongRate(10**7, DECAY, keep="update-variance").aim(
        examples
    )
    assert variance.rate**2 / variance.batch == pytest.approx(1e-7, rel=1e-3)
    assert variance.batch <= 10**7
    backwards = 10**7 / factor**2  # "b_k = b_0 d^(2k)" read with d > 1
    if factor < 0.5:
        assert factor**2 / backwards < 0.1 * 1e-7


def test_the_logarithmic_form_is_the_annealing_law() -> None:
    """B proportional to log(k + k0), with k in batches of the first size."""
    schedule = rb.schedules.Anneal(10, 1000, 10**6, form="logarithmic")
    offset = schedule.offset
    for share in (0.001, 0.1, 0.5, 0.9):
        steps = share * 10**5
        law = 10 * math.log(steps + offset) / math.log(offset)
        assert schedule.batch_size(int(share * 10**6)) == pytest.approx(law, rel=0.06)
    end = math.log(10**5 + offset) / math.log(offset)
    assert end == pytest.approx(100, rel=1e-6)


def test_a_smooth_schedule_moves_in_steps_of_ten_percent() -> None:
    ramp = rb.schedules.Ramp(32, 320, 100_000, form="geometric")
    sizes = {ramp.batch_size(n) for n in range(0, 100_000, 50)}
    assert len(sizes) == pytest.approx(math.log(10) / math.log(1.1), abs=2)


def test_rates_from_torch_schedulers_are_what_they_are() -> None:
    def make(optimizer: torch.optim.Optimizer) -> Any:
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100)

    rate = rb.schedules.Rate.from_scheduler(make, steps=100, batch_size=32)
    for step in (0, 1, 30, 99):
        truth = 0.5 * (1 + math.cos(math.pi * step / 100))
        assert rate(32 * step) == pytest.approx(truth, abs=1e-6)
    cosine = rb.schedules.Rate.cosine(3200)
    assert cosine(1600) == pytest.approx(0.5, abs=1e-4)
    warm = rb.schedules.Rate.cosine(1000, warmup=100)
    assert warm(50) == pytest.approx(0.5)
    assert warm(100) == pytest.approx(1.0)


def reading(noise: float, spread: float = 1.2, signal: float = 1.0) -> Reading:
    def around(value: float) -> rb.Estimate:
        low, high = value / spread, value * spread
        return rb.Estimate(
            value=value, low=low, high=high, unit="examples", n=9, method="test"
        )

    return Reading(
        noise_scale=around(noise), grad_norm_sq=around(signal), first_grad_norm_sq=4.0
    )


def test_live_schedules_are_their_formulas() -> None:
    optimum = rb.schedules.FollowNoise(64, half_batch=25.0, most=500).aim(
        0, reading(400.0)
    )
    assert optimum is not None
    assert optimum.batch == pytest.approx(100.0)
    assert optimum.low == pytest.approx(100 / math.sqrt(1.2))
    share = rb.schedules.FollowNoise(64, fraction=0.5, most=500).aim(0, reading(4000.0))
    assert share is not None
    assert share.batch == share.high == 500
    ratio = rb.schedules.SignalToNoise(64).aim(0, reading(1.0, signal=1.0))
    assert ratio is not None
    assert ratio.batch == pytest.approx(256)
    assert ratio.low < 256 < ratio.high
    assert rb.schedules.FollowNoise(64, fraction=0.5).aim(0, None) is None


@pytest.mark.parametrize(
    "make",
    [
        lambda: rb.schedules.Constant(0),
        lambda: rb.schedules.Constant(1.5),  # pyrefly: ignore
        lambda: rb.schedules.Stages(()),
        lambda: rb.schedules.Stages(((10, 64),)),
        lambda: rb.schedules.Stages(((0, 64), (0, 32))),
        lambda: rb.schedules.Stages(((0, 0),)),
        lambda: rb.schedules.Stages((64,)),  # pyrefly: ignore
        lambda: rb.schedules.Ramp(0, 10, 100),
        lambda: rb.schedules.Ramp(64, 128, 10),
        lambda: rb.schedules.Ramp(64, 128, 1000, form="cubic"),  # pyrefly: ignore
        lambda: rb.schedules.Anneal(64, 32, 1000, form="logarithmic"),
        lambda: rb.schedules.InsteadOfDecay(64, DECAY, 32),
        lambda: rb.schedules.InsteadOfDecay(64, DECAY, 128, form="both"),  # pyrefly: ignore
        lambda: rb.schedules.AlongRate(
            64, rb.schedules.Rate.cosine(1000)
        ),  # shrinks to nothing
        lambda: rb.schedules.AlongRate(64, DECAY, keep="update-variance"),
        lambda: rb.schedules.FollowNoise(64),
        lambda: rb.schedules.FollowNoise(64, fraction=0.5, half_batch=3.0),
        lambda: rb.schedules.FollowNoise(64, fraction=-1.0),
        lambda: rb.schedules.FollowNoise(64, fraction=0.5, most=32),
        lambda: rb.schedules.SignalToNoise(64, least=65),
        lambda: rb.schedules.Rate((0, 5), (1.0,)),
        lambda: rb.schedules.Rate((1, 5), (1.0, 0.5)),
        lambda: rb.schedules.Rate((0, 5), (1.0, math.nan)),
        lambda: rb.schedules.Rate((0, 5), (1.0, -0.5)),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(make: Any) -> None:
    with pytest.raises(rb.SettingError):
        make()


def test_a_schedule_is_held_against_the_run_before_it_begins() -> None:
    ramp = rb.schedules.Ramp(16, 4096, 10_000)
    with pytest.raises(rb.SettingError, match="exceeds the data set"):
        check_schedule(ramp, length=1000, examples=math.inf, largest=None)
    check_schedule(ramp, length=1000, examples=1000, largest=None)  # never gets there
    with pytest.raises(rb.SettingError, match="largest batch"):
        check_schedule(ramp, length=9000, examples=math.inf, largest=512)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("constant:64", rb.schedules.Constant(64)),
        ("stages:0=64,50k=128", rb.schedules.Stages(((0, 64), (50_000, 128)))),
        ("ramp:32:512:3epochs", rb.schedules.Ramp(32, 512, 3000)),
        (
            "ramp:32:512:3e:geometric",
            rb.schedules.Ramp(32, 512, 3000, form="geometric"),
        ),
        ("anneal:32:512:1m", rb.schedules.Anneal(32, 512, 1_000_000)),
        ("smith:512", rb.schedules.InsteadOfDecay(64, DECAY, 512)),
        ("temperature", rb.schedules.AlongRate(64, DECAY)),
        ("noise:0.5:512", rb.schedules.FollowNoise(64, fraction=0.5, most=512)),
        ("noise", rb.schedules.FollowNoise(64, half_batch=40.0, most=1000)),
        ("signal", rb.schedules.SignalToNoise(64, most=1000)),
    ],
)
def test_schedules_in_one_word(text: str, expected: Schedule) -> None:
    found = parse_schedule(text, batch=64, length=1000, rate=DECAY, half_batch=40.0)
    assert found == expected


@pytest.mark.parametrize(
    "text", ["", "ramp", "ramp:1:2", "ramp:a:b:c", "noise:x", "stages:5", "cubic:3"]
)
def test_other_words_are_refused_with_the_forms(text: str) -> None:
    with pytest.raises(rb.SettingError) as caught:
        parse_schedule(text, batch=64, length=1000, rate=DECAY)
    assert (
        "ramp:32:512" in str(caught.value)
        or "such as" in str(caught.value)
        or ("number of examples" in str(caught.value))
    )
    with pytest.raises(rb.SettingError):
        parse_rate(text, 1000)
    with pytest.raises(rb.SettingError):
        parse_examples("many", 10)


def test_a_schedule_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_text(json.dumps(rb.schedules.Ramp(16, 64, 999).to_plain()))
    assert parse_schedule(str(path), batch=1, length=9) == rb.schedules.Ramp(
        16, 64, 999
    )
    for text in ("[]", "{", '{"kind": "Ramp", "first": 1}', '{"kind": "None"}'):
        path.write_text(text)
        with pytest.raises(rb.RightbatchError):
            parse_schedule(str(path), batch=1, length=9)


# Hyperparameters


def sgd(lr: float = 0.1, **more: Any) -> torch.optim.SGD:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(3))], lr=lr, **more)


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


def test_a_scheduler_made_to_count_examples_ends_at_the_same_example() -> None:
    fixed, grown = sgd(1.0), sgd(1.0)
    make = torch.optim.lr_scheduler.LinearLR
    usual = make(fixed, 1.0, 0.1, total_iters=100)
    other = rb.schedules.ByExamples(
        make(grown, 1.0, 0.1, total_iters=100), batch_size=10
    )
    for _ in range(60):
        fixed.step()
        usual.step()
    sizes = [10] * 20 + [25] * 8 + [100] * 2
    for size in sizes:
        grown.step()
        other.step(examples=size)
    assert sum(sizes) == 600
    assert grown.param_groups[0]["lr"] == pytest.approx(fixed.param_groups[0]["lr"])
    saved = other.state_dict()
    other.step(examples=400)
    other.load_state_dict(saved)
    assert other.examples == 600
    with pytest.raises(rb.SettingError):
        rb.schedules.ByExamples(object(), batch_size=8)


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
    optimizer = sgd(0.1)
    scaling = rb.scale_hyperparameters(
        optimizer, batch_from=64, batch_to=256, rule=rule, **more
    )
    assert scaling.lr == pytest.approx(expected)
    assert scaling.ema == (1.0 if rule == "none" else 4.0)
    with pytest.raises(rb.SettingError, match="belong together"):
        rb.scale_hyperparameters(sgd(), batch_from=1, batch_to=2, exponent=0.5)


# The controller


def test_the_invariants_hold_in_what_the_optimizer_is_given() -> None:
    """lr / B along a whole run of the smith form, with batches rounded to pieces."""
    optimizer = sgd(0.5)
    schedule = rb.schedules.InsteadOfDecay(64, DECAY, 512)
    controller = rb.Controller(schedule, optimizer, 64, multiple=16)
    for examples in range(0, 120_000, 1000):
        controller(examples)
        lr = optimizer.param_groups[0]["lr"]
        assert controller.batch_size % 16 == 0
        truth = 0.5 * DECAY(examples) / 64
        assert lr / controller.batch_size == pytest.approx(truth, rel=1e-9)


class Noise:
    """A monitor that says what it is told."""

    def __init__(self) -> None:
        self.value, self.spread, self.examples = 100.0, 1.1, 1

    def read(self, window: int | None = None) -> Any:
        made = reading(self.value, self.spread)
        return types.SimpleNamespace(
            examples=1, noise_scale=made.noise_scale, grad_norm_sq=made.grad_norm_sq
        )


def live(**more: Any) -> tuple[rb.Controller, Noise]:
    noise: Any = Noise()
    schedule = rb.schedules.FollowNoise(64, fraction=1.0, most=4096)
    return rb.Controller(schedule, sgd(), 64, monitor=noise, **more), noise


def look(controller: rb.Controller, times: int = 1) -> list[Any]:
    return [c for _ in range(25 * times) if (c := controller(0)) is not None]


def test_a_live_batch_moves_only_when_the_interval_has_left_the_band() -> None:
    controller, noise = live()
    noise.value = 75.0  # within 1.25 x of 64
    assert look(controller, 4) == []
    noise.value, noise.spread = 300.0, 10.0  # as likely below as above
    assert look(controller, 4) == []
    noise.spread = 1.1
    (change,) = look(controller)
    assert (change.batch_from, change.batch_to) == (64, 128)  # at most twice
    assert "asks for 300" in change.reason
    assert [c.batch_to for c in look(controller, 3)] == [256]  # 300 is in the band
    noise.value = 250.0  # no flutter around the optimum
    assert look(controller, 3) == []
    noise.value = 20.0
    assert [c.batch_to for c in look(controller, 6)] == [128, 64, 32, 20]


def test_never_beyond_the_limit_and_said_once() -> None:
    controller, noise = live(largest=100, multiple=16)
    noise.value = 5000.0
    changes = look(controller, 5)
    assert [c.batch_to for c in changes] == [96, 96]
    assert "largest allowed" in changes[-1].reason
    assert "stays" in str(changes[-1])


def test_batch_and_rate_move_together_or_not_at_all() -> None:
    weight = torch.nn.Parameter(torch.zeros(3))
    adam = torch.optim.Adam([weight], lr=0.1, betas=(0.5, 0.98))
    noise: Any = Noise()
    schedule = rb.schedules.FollowNoise(64, fraction=1.0, most=4096)
    controller = rb.Controller(schedule, adam, 64, monitor=noise, rule="adam-sde")
    noise.value = 1000.0
    changes = look(controller, 3)
    assert changes[0].batch_to == 128
    assert "left its domain" in changes[1].reason  # beta1 would be negative at 256
    assert controller.batch_size == 128
    controller.undo()


def test_undo_takes_batch_and_rate_back() -> None:
    controller, noise = live()
    optimizer = controller.numbers.optimizer
    noise.value = 300.0
    look(controller)
    assert controller.batch_size == 128
    controller.undo()
    assert controller.batch_size == 64
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


def test_a_rule_that_does_not_reach_is_refused_before_the_run() -> None:
    weight = torch.nn.Parameter(torch.zeros(3))
    adam = torch.optim.Adam([weight], lr=0.1)
    with pytest.raises(rb.SettingError, match="left its domain"):
        rb.Controller(rb.schedules.Ramp(64, 6400, 10**6), adam, 64, rule="adam-sde")
    with pytest.raises(rb.SettingError, match="needs a monitor"):
        rb.Controller(rb.schedules.FollowNoise(64, fraction=1.0), sgd(), 64)
    with pytest.raises(rb.SettingError, match="two learning-rate decays"):
        rb.Controller(rb.schedules.AlongRate(512, DECAY), sgd(), 64, rate=DECAY)
