"""A run under a schedule of the learning rate is torch's own, step by step."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

import rightbatch as rb
from cases import made_up, regression_job
from rightbatch.measure.facts import job_facts
from rightbatch.schedules.scaling import apply_scaling, scaling_for
from rightbatch.training.run_state import RunState

EPOCHS, BATCH, CLIP = 4, 16, 0.5
STEPS = EPOCHS * 256 // BATCH


def factor(step: int) -> float:
    """Linear warm-up over 8 steps, then a cosine to the end."""
    if step < 8:
        return step / 8
    return 0.5 * (1 + math.cos(math.pi * (step - 8) / (STEPS - 8)))


def momentum(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.1, momentum=0.9)


def scheduler(optimizer: torch.optim.Optimizer) -> Any:
    return LambdaLR(optimizer, factor)


def clipped_job(**more: Any) -> rb.Job:
    job = regression_job(batch_size=BATCH, optimizer=momentum)
    return replace(job, clip_norm=CLIP, epochs=EPOCHS, **more)


def plain_loop() -> torch.nn.Module:
    """What a user writes with torch alone."""
    job = regression_job(batch_size=BATCH)
    model = job.make_model()
    optimizer = momentum(model.parameters())
    schedule = scheduler(optimizer)
    stream = rb.BatchStream(job.data, BATCH, seed=job.seed)
    clipped = 0
    for _ in range(EPOCHS):
        for batch in stream:
            optimizer.zero_grad()
            loss: Any = job.loss(model, batch)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            clipped += float(norm) > CLIP
            optimizer.step()
            schedule.step()
    assert clipped > 10
    return model


WAYS: dict[str, Any] = {
    "function": scheduler,
    "rate": rb.schedules.Rate.of(lambda n: factor(int(n) // BATCH), STEPS * BATCH),
    "word": f"warmup:{8 * BATCH}+cosine:{EPOCHS}epochs",
}


@pytest.mark.parametrize("way", WAYS)
def test_a_job_with_a_recipe_is_the_plain_loop(way: str) -> None:
    """Under training, and as everything else runs it."""
    truth = plain_loop().state_dict()
    job = clipped_job(rate=WAYS[way])
    measuring = RunState.start(job)
    while measuring.steps < STEPS:
        measuring.step()
    trained = rb.train(job)
    assert trained.last.steps == STEPS
    for model in (measuring.network, trained.model):
        for name, value in model.state_dict().items():
            torch.testing.assert_close(value, truth[name], rtol=0, atol=1e-6)


def moved(run: RunState, steps: int = 1) -> list[float]:
    """How far each step took the weights; plain SGD on a loss of slope one."""
    sizes = []
    for _ in range(steps):
        before = [p.detach().clone() for p in run.parameters]
        run.step()
        pairs = zip(before, run.parameters, strict=True)
        sizes.append(max(float((a - b.detach()).abs().max()) for a, b in pairs))
    return sizes


def slope_job(**more: Any) -> rb.Job:
    return regression_job(
        model=lambda: torch.nn.Linear(1, 1, bias=False),
        loss=lambda model, batch: model.weight.sum(),
        optimizer=lambda params: torch.optim.SGD(params, lr=0.1),
        batch_size=16,
        **more,
    )


def test_a_run_follows_another_rate_from_the_next_step_on() -> None:
    """As a race does: rewind, another batch with its rate, a stretched schedule."""
    halving = rb.schedules.Rate.steps({0: 1.0, 32: 0.5, 64: 0.25})
    run = RunState.start(slope_job(rate=halving))
    assert moved(run, 3) == pytest.approx([0.1, 0.1, 0.05])
    snapshot = run.snapshot()
    for _ in range(2):
        run.rewind(snapshot, seed=7)
        apply_scaling(run.optimizer, scaling_for("sgd", 16, 32))
        run.follow(halving.stretched(2))
        run.split(32)
        assert run.lr == pytest.approx(0.2)
        assert moved(run, 4) == pytest.approx([0.2, 0.1, 0.1, 0.05])
        run.follow(None)
        assert moved(run) == pytest.approx([0.2])
    run.rewind(snapshot, seed=7)
    run.split(16)
    assert run.optimizer.param_groups[0]["lr"] == 0.1
    assert run.rate is halving
    assert moved(run, 2) == pytest.approx([0.05, 0.025])


def test_the_rate_is_put_back_when_a_step_fails() -> None:
    def loss(model: torch.nn.Module, batch: Any) -> torch.Tensor:
        return model.weight.sum() * float("nan")  # pyrefly: ignore

    job = replace(slope_job(rate=rb.schedules.Rate.steps({0: 0.5})), loss=loss)
    run = RunState.start(job)
    with pytest.raises(rb.NotFiniteError, match=r"nan"):
        run.step()
    assert run.optimizer.param_groups[0]["lr"] == 0.1


class Restless(torch.optim.SGD):
    """Steps a schedule of its own."""

    def step(self, closure: Any = None) -> Any:
        self.param_groups[0]["lr"] *= 0.9
        return super().step(closure)


def test_an_optimizer_with_a_schedule_of_its_own_is_told() -> None:
    job = replace(slope_job(), optimizer=lambda p: Restless(p, lr=0.1))
    with pytest.raises(rb.JobError, match="changes its learning rate by itself"):
        rb.train(job, epochs=1)


def test_train_follows_the_job_and_arguments_come_first() -> None:
    job = slope_job(rate="cosine:2epochs", epochs=2)
    run = rb.train(job)
    assert run.last.examples == 512
    assert run.last.lr is not None
    assert run.last.lr < 1e-3
    assert run.rows[0].lr == pytest.approx(0.1, rel=0.05)
    other = rb.train(job, rate="steps:0=0.5", epochs=1)
    assert other.last.examples == 256
    assert {row.lr for row in other.rows} == {0.05}
    taken = rb.train(job, schedule="smith:64")  # the job's own decay is taken up
    assert taken.batch_size == 64
    assert any("the rate would be" in event for event in taken.events)


def test_a_target_ends_the_run_before_its_length() -> None:
    def slope(model: Any) -> float:
        return float(model.weight)

    job = replace(slope_job(epochs=2), evaluate=slope, target=0.0)
    run = rb.train(job)
    assert run.reached
    assert run.last.examples < 512


def test_a_plan_stretches_the_jobs_schedule_to_its_own_length() -> None:
    plan = rb.decide(made_up(t0=4e-3, t1=1e-3, critical=100)).plan
    assert plan.batch_size != plan.today
    recipe = {"rate": "warmup:128+cosine:2epochs", "epochs": 2, "clip_norm": 0.3}
    job = replace(slope_job(name="made_up"), batch_size=plan.today, **recipe)
    longer = replace(plan, examples=1024.0)
    run = rb.train(job, longer)
    assert run.last.examples >= 1024
    assert run.last.examples - run.batch_size < 1024
    truth = rb.schedules.Rate.cosine(512, warmup=128).stretched(2)
    for row in run.rows:
        before = row.examples - row.batch_size
        assert row.lr == pytest.approx(plan.lr * truth(before), rel=1e-6)
    assert rb.train(job, plan).last.examples < 1024
    assert rb.train(job, longer, epochs=1, rate="steps:0=1").last.examples < 1024


def test_a_run_gone_on_with_keeps_the_rate_it_began_with(tmp_path: Any) -> None:
    job = clipped_job(rate=scheduler)
    rb.train(job, examples=STEPS * BATCH // 2, out=tmp_path / "r")
    other = replace(job, rate="steps:0=3", clip_norm=9.0)
    run = rb.train(other, epochs=EPOCHS, out=tmp_path / "r", resume=True)
    truth = plain_loop().state_dict()
    for name, value in run.model.state_dict().items():
        torch.testing.assert_close(value, truth[name], rtol=0, atol=1e-6)


def test_facts_of_a_job_tell_its_recipe() -> None:
    facts = job_facts(RunState.start(clipped_job(rate=WAYS["word"])), "")
    assert (facts.run_examples, facts.clip_norm, facts.lr) == (1024.0, CLIP, 0.1)
    assert facts.rate.startswith("rate 0 -> 1 (at 128)")
    plain = job_facts(RunState.start(regression_job()), "")
    assert (plain.run_examples, plain.rate, plain.clip_norm) == (None, "", None)
