"""Batches compared: equal budgets, one start, the rate's schedule, Ctrl-C, refusals."""

import os
import signal
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import rightbatch as rb
from cases import regression_job
from rightbatch.landscape import Comparison, compare_batches, sharpness
from rightbatch.landscape.comparison_text import sentences

EXAMPLES, SIZES = 256, [16, 128]


def held_out_job(**more: Any) -> rb.Job:
    """Linear regression whose held-out data come from the same line."""
    job = regression_job(EXAMPLES)
    generator = torch.Generator().manual_seed(9)
    x = torch.randn(400, 5, generator=generator)
    y = x @ torch.arange(1.0, 6)[:, None] + torch.randn(400, 1, generator=generator)

    def evaluate(model: nn.Module) -> float:
        return float((model(x) - y).square().mean())

    changes: dict[str, Any] = {"evaluate": evaluate, **more}
    return replace(job, **changes)


@pytest.fixture(scope="module")
def compared() -> Comparison:
    return compare_batches(held_out_job(), SIZES, epochs=2, seeds=2)


def test_budgets_are_equal_in_what_they_say(compared: Comparison) -> None:
    by = {s: compared.of(s) for s in compared.settings}
    epochs = {s: run for s, runs in by.items() for run in runs if s[0] == "epochs"}
    assert {s[1] * run.updates for s, run in epochs.items()} == {2 * EXAMPLES}
    assert {r.updates for r in compared.runs if r.budget == "updates"} == {32}
    assert len([s for s in by if s[0] == "updates"]) == 4  # 16 once, 128 by 3 rules
    assert all(len(runs) == 2 for runs in by.values())
    assert compared.same_quantity


def test_a_run_is_the_run_that_train_makes(compared: Comparison) -> None:
    for setting in (("epochs", 16, "none"), ("epochs", 128, "linear")):
        for run in compared.of(setting):
            job = replace(held_out_job(), seed=run.seed)
            alone = rb.train(job, batch_size=setting[1], rule="linear", epochs=2)
            assert run.held_out == pytest.approx(alone.last.metric, rel=1e-5)
            assert run.lr == pytest.approx(alone.last.lr)


def test_it_is_alike_each_time_whatever_the_random_state(compared: Comparison) -> None:
    torch.manual_seed(1234)
    again = compare_batches(held_out_job(), SIZES, epochs=2, seeds=2)
    assert again == compared


def test_matched_runs_stop_where_their_loss_reaches_the_level(
    compared: Comparison,
) -> None:
    slowest = [min(r.course, key=lambda c: c[1]) for r in compared.runs]
    assert compared.level in [look[1] for look in slowest]
    matched = [run for run in compared.runs if run.budget == "loss"]
    assert {run.end for run in matched} == {"done"}
    for run in matched:
        assert run.train_loss <= compared.level
        assert all(train_loss > compared.level for _, train_loss, _ in run.course[:-1])
        assert run.updates == run.course[-1][0] <= 32


def test_a_level_out_of_reach_is_said_and_compares_nothing() -> None:
    job = held_out_job()
    found = compare_batches(job, [16, 64], epochs=1, budgets=["loss"], level=0.01)
    assert {run.end for run in found.runs} == {"not reached"}
    assert {run.updates for run in found.runs} == {16}
    assert all(found.difference(s) is None for s in found.settings)


def test_converged_runs_of_a_convex_job_agree_at_every_batch() -> None:
    """A rate that falls to zero leads every batch to the least squares.

    It falls with the updates where those are alike: stretched with the batch.
    """
    job = held_out_job(
        rate="cosine:8epochs",
        epochs=8,
        optimizer=lambda params: torch.optim.SGD(params, lr=0.05),
    )
    budgets: list[Any] = ["epochs", "updates"]
    found = compare_batches(job, [16, 64], seeds=2, rules=["linear"], budgets=budgets)
    x, y = job.data
    model = nn.Linear(5, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.linalg.lstsq(x, y).solution.T)
        assert job.evaluate is not None
        best = job.evaluate(model)
    assert len(found.runs) == 8
    for run in found.runs:
        assert run.held_out == pytest.approx(best, abs=0.02)  # of 55 at the start
    for setting in found.settings[1::2]:
        difference = found.difference(setting)
        assert difference is not None
        assert abs(difference.value) < 0.01


def test_what_diverges_stays_a_row() -> None:
    job = held_out_job(optimizer=lambda p: torch.optim.SGD(p, lr=0.2), batch_size=8)
    found = compare_batches(job, [8, 64], epochs=2, seeds=1, budgets=["epochs"])
    ends = {s[2]: {run.end for run in found.of(s)} for s in found.settings[1:]}
    assert ends == {"none": {"done"}, "sqrt": {"done"}, "linear": {"diverged"}}
    assert found.mean(("epochs", 64, "linear"), "held_out") is None
    assert found.difference(("epochs", 64, "linear")) is None


def test_sharpness_is_asked_at_matched_loss_of_the_model_there() -> None:
    job = held_out_job()

    def asked(job: rb.Job, model: nn.Module) -> Any:
        torch.rand(3)  # random numbers of its own change no run
        top = SimpleNamespace(value=job.evaluated(model))
        return SimpleNamespace(top=top, trace=SimpleNamespace(value=7.0))

    given: Any = {"epochs": 2, "seeds": 1, "budgets": ["epochs", "loss"], "level": 20.0}
    found = compare_batches(job, [16, 64], sharpness=asked, **given)
    for run in found.runs:
        here = run.budget == "loss"
        assert run.sharpness == (run.held_out if here else None)
        assert run.trace == (7.0 if here else None)
    plain = compare_batches(job, [16, 64], **given)
    assert [r.held_out for r in plain.runs] == [r.held_out for r in found.runs]


def test_a_sharpness_that_cannot_be_had_costs_no_run() -> None:
    """One weight: there must be fewer eigenvalues than parameters."""
    x = torch.randn(64, 1, generator=torch.Generator().manual_seed(0))
    job = rb.Job(
        model=lambda: nn.Linear(1, 1, bias=False),
        loss=lambda model, batch: (model(batch[0]) - 1).square().mean(),
        data=(x,),
        optimizer=lambda params: torch.optim.SGD(params, lr=0.1),
        batch_size=4,
        evaluate=lambda model: float((model(x[:9]) - 1).square().mean()),
    )
    found = compare_batches(job, [4, 16], epochs=1, seeds=1, sharpness=sharpness)
    assert found.runs
    assert "fewer eigenvalues" in found.no_sharpness
    assert any("Sharpness was not measured" in text for text in sentences(found))


def test_the_smallest_batch_comes_to_the_level_that_is_chosen() -> None:
    """Where the large batch at a scaled rate is far ahead of it in equal updates."""
    job = held_out_job(optimizer=lambda params: torch.optim.SGD(params, lr=1e-3))
    found = compare_batches(replace(job, batch_size=16), [16, 128], epochs=1, seeds=1)
    (small,) = found.of(("loss", 16, "none"))
    assert small.end == "done"
    assert found.difference(("loss", 128, "linear")) is not None


def test_a_score_has_no_gap_with_a_loss() -> None:
    job = held_out_job(goal="max", evaluate=lambda model: 0.5)
    found = compare_batches(job, [16, 32], epochs=1, seeds=1, budgets=["epochs"])
    assert not found.same_quantity
    assert found.mean(found.settings[0], "gap") is None


def test_ctrl_c_keeps_the_runs_that_had_ended() -> None:
    job, calls = held_out_job(), []

    def evaluate(model: nn.Module) -> float:
        calls.append(model)
        if len(calls) == 20:
            os.kill(os.getpid(), signal.SIGINT)
        return 1.0

    job = replace(job, evaluate=evaluate)
    found = compare_batches(job, [16, 32, 128], epochs=4, seeds=2)
    assert found.interrupted
    assert 0 < len(found.runs) < 14
    assert len(calls) < 25


@pytest.mark.parametrize(
    ("change", "given", "reason"),
    [
        ({"evaluate": None}, {}, "needs the job's evaluate"),
        ({}, {"batch_sizes": [16]}, "two or more"),
        ({}, {"batch_sizes": [16, 512]}, "none larger than the data set or a run"),
        ({}, {"examples": 20}, "none larger than the data set or a run"),
        ({}, {"budgets": ["epochs", "loss"]}, "or a level"),
        ({}, {"budgets": ["steps"]}, "budgets are some of"),
        ({}, {"rules": ["cubic"]}, "no scaling rule"),
        ({}, {"seeds": 0}, "at least 1"),
        ({}, {"epochs": 1, "examples": 9}, "not both"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    change: dict[str, Any], given: dict[str, Any], reason: str
) -> None:
    settings: dict[str, Any] = {"batch_sizes": [16, 32], **given}
    with pytest.raises(rb.SettingError, match=reason):
        compare_batches(held_out_job(**change), **settings)
