"""Muon and AdamW on one model: accumulated, ramped, resumed; against plain loops."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rightbatch as rb
from cases import made_up
from reference import whole_gradient
from rightbatch.job.several_optimizers import MEMBERS
from rightbatch.measure.facts import job_facts
from rightbatch.schedules.scaling import apply_scaling, multiply_rates, scaling_for
from rightbatch.training.any_checkpoint import load_start
from rightbatch.training.run_state import RunState
from rightbatch.training.start_from import begin_from
from two_optimizers import ADAM_LR, LM, MUON_LR, data, loss, two_optimizer_job

OF_OPTIMIZER = ("name", "optimizer", "family", "decoupled_decay", "lr")
ORDERS = {"muon first": (0, 1), "adamw first": (1, 0)}


def optimizers_of(model: nn.Module, lr: float | None = None) -> list[Any]:
    matrices = [model.get_parameter("inner.weight")]
    rest = [p for p in model.parameters() if p is not matrices[0]]
    return [
        torch.optim.Muon(matrices, lr=MUON_LR if lr is None else lr),
        torch.optim.AdamW(rest, lr=ADAM_LR if lr is None else lr, betas=(0.9, 0.98)),
    ]


def gradients(model: nn.Module) -> Tensor:
    return torch.cat(
        [p.grad.flatten().double() for p in model.parameters() if p.grad is not None]
    )


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("count", "micro"), [(16, None), (17, 5), (9, 1)])
def test_the_gradient_of_both_is_that_of_the_whole_batch(
    order: str, count: int, micro: int | None
) -> None:
    """Against one example at a time, in double."""
    torch.manual_seed(0)
    model, (x, keep) = LM(), data(count, seed=count)
    both = optimizers_of(model, lr=0.0)
    both = [both[i] for i in ORDERS[order]]
    update = rb.Accumulator(model, loss, both, micro)((x, keep))
    found = gradients(model)
    truth = whole_gradient(
        model, loss, [(x[i : i + 1], keep[i : i + 1].double()) for i in range(count)]
    )
    assert (found - truth).norm() <= 1e-6 * truth.norm()
    assert update.grad_norm == pytest.approx(float(truth.norm()), rel=1e-5)


def test_one_norm_is_clipped_and_all_step_or_none() -> None:
    torch.manual_seed(0)
    model, batch = LM(), data(8)
    step = rb.Accumulator(model, loss, optimizers_of(model), 4, clip_norm=0.01)
    step(batch)
    assert float(gradients(model).norm()) == pytest.approx(0.01, rel=1e-4)
    before = [p.detach().clone() for p in model.parameters()]

    def broken(model: nn.Module, batch: Any) -> Any:
        total, count = loss(model, batch)
        return total * math.nan, count

    skipping = rb.Accumulator(
        model, broken, optimizers_of(model), 4, nonfinite="skip", check=False
    )
    assert not skipping(batch).applied
    for old, new in zip(before, model.parameters(), strict=True):
        assert torch.equal(old, new)


def test_a_scaler_serves_both() -> None:
    torch.manual_seed(0)
    norms = []
    for precision in ("float32", "float16"):
        torch.manual_seed(0)
        model = LM()
        scaler = torch.amp.GradScaler("cpu") if precision == "float16" else None
        step = rb.Accumulator(
            model, loss, optimizers_of(model), 4, precision=precision, scaler=scaler
        )
        norms.append([step(data(8, seed)).grad_norm for seed in range(3)])
    assert norms[1] == pytest.approx(norms[0], rel=0.02)


def test_what_no_optimizer_holds_is_right_and_told_once() -> None:
    torch.manual_seed(0)
    model, batch = LM(), data(8)
    muon, rest = optimizers_of(model, lr=0.0)
    step = rb.Accumulator(model, loss, muon, 4, check=False)
    with pytest.warns(UserWarning, match=r"3 trainable parameters.*in no optimizer"):
        step(batch)
    found = gradients(model)
    total, counted = loss(model, batch)
    model.zero_grad()
    (total / counted).backward()
    assert (found - gradients(model)).norm() <= 1e-6 * found.norm()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(batch)
        rb.Accumulator(model, loss, [muon, rest], 4, check=False)(batch)
        for parameter in rest.param_groups[0]["params"]:
            parameter.requires_grad_(False)
        rb.Accumulator(model, loss, muon, 4, check=False)(batch)


def plain_loop(steps: int, batch_size: int) -> nn.Module:
    """What a user writes with torch alone, at today's batch."""
    job = two_optimizer_job()
    model = job.make_model()
    both = optimizers_of(model)
    stream = rb.BatchStream(job.data, batch_size, seed=job.seed)
    batches = (batch for _ in range(9) for batch in stream)
    for _, batch in zip(range(steps), batches, strict=False):
        model.zero_grad()
        total, count = loss(model, batch)
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        for optimizer in both:
            optimizer.step()
    return model


def test_a_job_is_the_plain_loop_and_its_names_are_the_models() -> None:
    job = two_optimizer_job(clip_norm=0.5)
    run = rb.train(job, examples=320, micro_batch=4)
    assert run.last.steps == 20
    truth = plain_loop(20, 16).state_dict()
    for name, value in run.model.state_dict().items():
        torch.testing.assert_close(value, truth[name], rtol=0, atol=2e-5)


RAMP = rb.schedules.Ramp(16, 64, 512)


def test_rates_of_both_groups_follow_a_ramp_by_their_rules() -> None:
    run = RunState.start(two_optimizer_job())
    model, muon, adam = run.network, *run.optimizer.param_groups
    controller = rb.Controller(RAMP, run.optimizer, 16, stream=run.stream)
    sizes = set()
    for _ in range(20):
        run.step()
        controller(run.examples)
        ratio = run.batch_size / 16
        sizes.add(run.batch_size)
        assert muon["lr"] == pytest.approx(MUON_LR * math.sqrt(ratio))
        assert adam["lr"] == pytest.approx(ADAM_LR * math.sqrt(ratio))
        # lr * weight decay / B stays; Muon's eps guards a norm, Adam's stands by a root
        assert muon["weight_decay"] == pytest.approx(0.1 * math.sqrt(ratio))
        assert adam["weight_decay"] == pytest.approx(0.01 * math.sqrt(ratio))
        assert muon["eps"] == 1e-7
        assert muon["momentum"] == 0.95
        assert adam["eps"] == pytest.approx(1e-8 / math.sqrt(ratio))
        assert adam["betas"] == pytest.approx((0.9, max(0.98**ratio, 0.9)))
    assert run.batch_size == 64
    assert len(sizes) > 4
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_it_is_resumed_bit_for_bit_in_mid_ramp(tmp_path: Path) -> None:
    job = two_optimizer_job(rate="linear:4epochs:0.1")
    how: dict[str, Any] = {"schedule": RAMP, "micro_batch": 8}
    whole = rb.train(job, examples=1024, **how)
    rb.train(job, examples=300, out=tmp_path / "r", **how)
    run = rb.train(job, examples=1024, out=tmp_path / "r", resume=True)
    assert run.resumed is not None
    assert run.batch_size == whole.batch_size == 64
    for name, value in run.model.state_dict().items():
        assert torch.equal(value, whole.model.state_dict()[name])
    assert run.last.lr == whole.last.lr
    assert run.checkpoint is not None
    saved = torch.load(run.checkpoint, weights_only=True)["optimizer"][MEMBERS]
    assert [len(state["param_groups"]) for state in saved] == [1, 1]


def test_a_run_forks_both() -> None:
    run = RunState.start(two_optimizer_job())
    run.step()
    snapshot = run.snapshot()
    losses = [run.step().loss for _ in range(3)]
    run.rewind(snapshot)
    assert [run.step().loss for _ in range(3)] == losses


@pytest.mark.parametrize("layout", ["list", "lightning", "ours"])
def test_a_run_begins_from_the_states_of_both(layout: str, tmp_path: Path) -> None:
    run = RunState.start(two_optimizer_job())
    run.step()
    states = [o.state_dict() for o in run.optimizer.members]  # pyrefly: ignore
    state: dict[str, Any] = {
        "list": {"model": run.network.state_dict(), "optimizer": states},
        "lightning": {
            "state_dict": run.network.state_dict(),
            "optimizer_states": states,
        },
        "ours": {
            "model": run.network.state_dict(),
            "optimizer": run.optimizer.state_dict(),
        },
    }[layout]
    torch.save({**state, "global_step": 1}, tmp_path / "a.pt")
    start, other = load_start(tmp_path / "a.pt"), RunState.start(two_optimizer_job())
    begin_from(other, start)
    for mine, theirs in zip(run.parameters, other.parameters, strict=True):
        for name, value in run.optimizer.state[mine].items():
            assert torch.equal(other.optimizer.state[theirs][name], value)
    alone = RunState.start(two_optimizer_job(optimizer=torch.optim.AdamW))
    with pytest.raises(rb.SettingError, match=r"states of 2 optimizer\(s\)"):
        begin_from(alone, start)
    one = {**state, "optimizer": states[0], "optimizer_states": states[:1]}
    torch.save(one, tmp_path / "b.pt")
    with pytest.raises(rb.SettingError, match=r"states of 1 optimizer\(s\)"):
        begin_from(other, load_start(tmp_path / "b.pt"))


def test_a_candidate_moves_both_rates_by_one_factor() -> None:
    run = RunState.start(two_optimizer_job())
    plan_lr = 0.03
    scaling = scaling_for("muon", 16, 64, noise_scale=64.0, decoupled_decay=True)
    apply_scaling(run.optimizer, scaling)
    factor = plan_lr / (MUON_LR * scaling.lr)
    multiply_rates(run.optimizer, factor)
    muon, adam = run.optimizer.param_groups
    assert scaling.lr == pytest.approx(math.sqrt((1 + 64 / 16) / (1 + 64 / 64)))
    assert muon["lr"] == pytest.approx(plan_lr)
    assert adam["lr"] == pytest.approx(ADAM_LR * scaling.lr * factor)
    assert adam["betas"][1] == pytest.approx(0.98**4)


def test_a_plan_of_the_pair_is_trained_by_each_ones_rule() -> None:
    job = two_optimizer_job()
    facts = job_facts(RunState.start(job), "")
    assert (facts.optimizer, facts.family) == ("Muon + AdamW", "muon")
    assert facts.lr == MUON_LR
    made = made_up(t0=4e-3, t1=1e-3, critical=100)
    of_job = replace(
        made.job, **{f: getattr(facts, f) for f in ("name", *OF_OPTIMIZER)}
    )
    plan = rb.decide(replace(made, job=of_job)).plan
    assert plan.batch_size != plan.today
    plan = replace(plan, batch_size=64, micro_batch=16, today=16)
    scaling = scaling_for("muon", 16, 64, noise_scale=64.0, decoupled_decay=True)
    plan = replace(plan, scaling=scaling, lr_factor=1.5, lr=MUON_LR * scaling.lr * 1.5)
    run = rb.train(job, plan, examples=128)
    assert run.rows[0].lr == pytest.approx(plan.lr)
    assert run.scaling.rule == "sqrt-noise-aware"
    with pytest.raises(rb.SettingError, match="optimizer has changed"):
        rb.train(replace(job, optimizer=torch.optim.AdamW), plan, examples=128)
