"""The chapter on batch and learning rate: its simulators, and its quick claims."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import rightbatch as rb
from rightbatch.lab.chapters import claim_named
from rightbatch.lab.claim import run_claim
from rightbatch.lab.rates.critical_batch import doubling
from rightbatch.lab.rates.instead_of_decay import WAYS, share_of_updates
from rightbatch.lab.rates.schedules_hold import FIRST, STAGES, UPDATES, decayed
from rightbatch.lab.rates.small_net import following, small_job, steps_to
from rightbatch.lab.rates.walks import rest_variance, timetable, variance_at_rest
from rightbatch.lab.training_runs import trained
from rightbatch.training.run_state import RunState


@pytest.mark.parametrize("name", ["delta-squared", "schedules-hold"])
def test_quick_claims_come_to_their_verdict(name: str) -> None:
    assert run_claim(claim_named(name), seed=1).as_recorded


@pytest.mark.parametrize("lr", [0.1, 1.0, 1.8])
def test_rest_variance_is_the_fixed_point_of_the_recursion(lr: float) -> None:
    b, noise, variance = 8, 3.0, 0.0
    for _ in range(2000):
        variance = (1 - lr) ** 2 * variance + lr**2 * noise / b
    assert rest_variance(b, lr, noise) == pytest.approx(variance, rel=1e-9)


def test_a_walk_comes_to_rest_at_the_formula() -> None:
    # 20,000 chains: the variance of one step is known to 1 % (one standard error).
    seen = variance_at_rest(4, 0.5, noise=2.0, chains=20_000, seed=0)
    assert seen.value == pytest.approx(rest_variance(4, 0.5, 2.0), rel=0.03)


def test_a_timetable_holds_the_schedule_step_by_step() -> None:
    stages = rb.schedules.Stages(((0, 4), (12, 8)))
    rate = rb.schedules.Rate.steps({0: 1.0, 20: 0.5})
    table = timetable(stages, lr=0.2, examples=36, rate=rate)
    assert table[:, 0].tolist() == [4, 4, 4, 8, 8, 8]
    assert table[:, 1].tolist() == [0.2] * 4 + [0.1] * 2


@pytest.mark.parametrize("power", [-2, -1, 0, 1, 2])
def test_every_stage_of_a_decay_has_as_many_updates(power: int) -> None:
    schedule, rate, examples = decayed(power)
    beside = None if hasattr(schedule, "rate") else rate
    table = timetable(schedule, lr=1.0, examples=examples, rate=beside)
    assert len(table) == STAGES * UPDATES
    lrs = table[::UPDATES, 1]
    assert lrs == pytest.approx(0.8 ** np.arange(STAGES))
    assert table[::UPDATES, 0] == pytest.approx(FIRST * lrs**power, rel=0.03)


def test_doubling_halves_far_below_and_does_nothing_far_above() -> None:
    assert doubling(1000.0, 1.0) == pytest.approx(0.5, abs=1e-3)
    assert doubling(1.0, 1000.0) == pytest.approx(1.0, abs=1e-3)
    assert doubling(64.0, 64.0) == pytest.approx(0.75)


def test_the_share_of_updates_is_that_of_the_schedule_itself() -> None:
    schedule, _ = WAYS["batch grows instead"]
    grown = len(timetable(schedule, lr=1.0, examples=1437))
    assert grown / (1437 / schedule.start) == pytest.approx(
        share_of_updates(), rel=0.03
    )


def test_a_run_follows_a_schedule_and_its_rate() -> None:
    pytest.importorskip("sklearn")
    seen: list[tuple[int, float | None]] = []
    follow = following(rb.schedules.Stages(((0, 8), (16, 32))), rule="linear")

    def before(run: RunState) -> None:
        follow(run)
        seen.append((run.batch_size, run.lr))

    job = small_job(0, batch_size=8, lr=0.1)
    trained(job, batch_size=8, lr=0.1, steps=3, before=before)
    assert [b for b, _ in seen] == [8, 8, 32]
    assert [lr for _, lr in seen] == pytest.approx([0.1, 0.1, 0.4])


def test_steps_to_a_loss_are_those_of_a_loop_written_out() -> None:
    pytest.importorskip("sklearn")
    job = small_job(3)
    taken = steps_to(job, 2.0, batch_size=64, lr=0.5, most=100)
    pixels, classes = job.data
    torch.manual_seed(3)
    model, steps = job.make_model(), 0
    stream = rb.BatchStream(job.data, 64, seed=3, tail="carry")
    for x, y in stream:
        loss = torch.nn.functional.cross_entropy(model(x), y)
        grads = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for p, g in zip(model.parameters(), grads, strict=True):
                p -= 0.5 * g
            steps += 1
            now = torch.nn.functional.cross_entropy(model(pixels), classes)
        if now <= 2.0:
            break
    assert taken == steps
    assert steps_to(job, 0.01, batch_size=64, lr=0.5, most=3) == math.inf
