"""What went wrong once while running: each with the least that showed it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rightbatch as rb
from cases import regression_job
from resumed_job import plain as plain_job
from resumed_runs import poisoned, same, state_of, stop_after
from rightbatch.training.accumulator import NotFiniteError


def mean_loss(model: nn.Module, batch: Any) -> Tensor:
    return (model(batch[0]) - batch[1]).square().mean()


def quiet(text: str) -> None:
    pass


# The accumulator


@pytest.mark.parametrize("nothing", [0, 0.0])
def test_a_count_of_nothing_is_not_a_count_left_out(nothing: Any) -> None:
    """Two of four pieces are masked: they weigh nothing, as plain numbers too."""
    model = nn.Linear(2, 1)

    def loss(model: nn.Module, batch: Any) -> tuple[Tensor, Any]:
        x, keep = batch
        total = (model(x).squeeze(1) * keep).sum()
        count = int(keep.sum())
        return total, count or nothing

    x, keep = torch.randn(8, 2), torch.tensor([0.0, 0, 1, 1, 0, 0, 1, 1])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    update = rb.Accumulator(model, loss, optimizer, 2, check=False)((x, keep))
    assert update.count == 4
    assert model.weight.grad is not None
    torch.testing.assert_close(model.weight.grad[0], x[keep > 0].mean(0))


def test_memory_is_kept_for_the_state_of_the_optimizer_only_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where there is none to come: SGD without momentum."""
    from rightbatch.training import gradient

    calls = []
    reserve = gradient.reserve
    monkeypatch.setattr(gradient, "reserve", lambda p: calls.append(1) or reserve(p))
    model = nn.Linear(2, 1)
    step = rb.Accumulator(model, mean_loss, torch.optim.SGD(model.parameters()))
    for _ in range(3):
        step((torch.randn(4, 2), torch.randn(4, 1)))
    assert len(calls) == 1


def test_parameters_added_while_training_are_clipped_with_the_others() -> None:
    model = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.0)
    step = rb.Accumulator(model, mean_loss, optimizer, 2, clip_norm=1e-3, check=False)
    batch = (torch.randn(4, 2), torch.randn(4, 1))
    with pytest.warns(UserWarning, match="2 trainable parameters"):
        step(batch)
    optimizer.add_param_group({"params": list(model[1].parameters())})
    step(batch)
    grads = torch.cat([p.grad.flatten() for p in model.parameters()])  # pyrefly: ignore
    assert float(grads.norm()) == pytest.approx(1e-3, rel=1e-4)


def test_a_batch_of_lists_of_images_is_not_cut_across_them() -> None:
    """``tuple(zip(*examples))``: eight images whose first axis is of three channels."""
    model = nn.Linear(3, 1)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return model(torch.stack(batch[0])).square().mean()

    step = rb.Accumulator(model, loss, torch.optim.SGD(model.parameters()), 2)
    with pytest.raises(rb.JobError) as caught:
        step(([torch.ones(3)] * 8, [torch.ones(3)] * 8))
    assert "split=" in str(caught.value)


def test_nan_stops_under_a_scaler_too() -> None:
    model = nn.Linear(2, 1)
    weights = [p.detach().clone() for p in model.parameters()]
    step = rb.Accumulator(
        model,
        lambda model, batch: mean_loss(model, batch) * float("nan"),
        torch.optim.SGD(model.parameters(), lr=0.1),
        precision="float16",
        scaler=torch.amp.GradScaler("cpu"),
        check=False,
    )
    with pytest.raises(NotFiniteError):
        step((torch.randn(4, 2), torch.randn(4, 1)))
    assert all(map(torch.equal, model.parameters(), weights))


def test_an_optimizer_of_another_model_is_refused() -> None:
    model, other = nn.Linear(2, 1), nn.Linear(2, 1)
    with pytest.raises(rb.SettingError, match="holds no parameter"):
        rb.Accumulator(model, mean_loss, torch.optim.SGD(other.parameters()))
    with pytest.raises(rb.SettingError, match="in this order"):
        rb.Accumulator(model, torch.optim.SGD(model.parameters()), mean_loss)  # pyrefly: ignore
    with pytest.raises(rb.SettingError, match="LBFGS"):
        rb.Accumulator(model, mean_loss, torch.optim.LBFGS(model.parameters()))


# Going on


def test_a_run_without_its_manifests_is_not_deleted(tmp_path: Path) -> None:
    out = tmp_path / "r"
    rb.train(plain_job, batch_size=32, epochs=1, out=out)
    for manifest in (out / "checkpoints").glob("*.json"):
        manifest.unlink()
    before = sorted(p.name for p in out.rglob("*"))
    with pytest.raises(rb.RunFolderError):
        rb.train(plain_job, batch_size=32, epochs=1, out=out, resume="auto")
    assert sorted(p.name for p in out.rglob("*")) == before


def test_the_steps_of_the_batch_stay_when_a_run_goes_on(tmp_path: Path) -> None:
    """A smooth schedule is rounded to the multiple that it began with."""
    how: dict[str, Any] = {"epochs": 6, "schedule": rb.schedules.Ramp(16, 48, 2000)}
    rb.train(plain_job, micro_batch=8, out=tmp_path / "whole", **how)
    cut = tmp_path / "cut"
    rb.train(plain_job, micro_batch=8, out=cut, watch=stop_after(1), **how)
    rb.train(plain_job, micro_batch=5, out=cut, resume=True)
    one, two = state_of(cut), state_of(tmp_path / "whole")
    assert one["steps"] == two["steps"]
    assert one["controller"] == two["controller"]


def test_a_run_that_reached_its_target_is_left_as_it_is(tmp_path: Path) -> None:
    job = rb.load_job("digits")
    first = rb.train(job, batch_size=64, out=tmp_path / "r")
    assert first.reached
    files = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    again = rb.train(job, out=tmp_path / "r", resume=True)
    assert again.reached
    assert again.last == first.last
    now = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert now.keys() == files.keys()
    assert all(now[p] == files[p] for p in files if p.suffix == ".pt")


def test_a_copied_folder_writes_its_own_ledger(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    rb.train(plain_job, epochs=2, batch_size=32, ledger=True, out=one)
    shutil.copytree(one, two)
    before = {p: p.stat().st_size for p in (one / "ledger").rglob("*") if p.is_file()}
    rb.train(plain_job, epochs=4, out=two, resume=True)
    after = {p: p.stat().st_size for p in (one / "ledger").rglob("*") if p.is_file()}
    assert after == before
    from rightbatch.data.loading.ledger import Ledger

    audit = Ledger(two / "ledger").audit()
    assert (audit.lost, audit.repeated) == (0, 0)
    assert audit.examples == 4 * 512


def test_memory_inside_the_optimizer_with_micro_batches_of_one(tmp_path: Path) -> None:
    """Nothing smaller is possible: it goes back, and on as it was."""

    class Greedy(torch.optim.SGD):
        count = 0

        def step(self, closure: Any = None) -> Any:
            Greedy.count += 1
            if Greedy.count == 5:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().step(closure)

    job = replace(regression_job(), optimizer=lambda p: Greedy(p, lr=0.01))
    run = rb.train(job, batch_size=4, micro_batch=1, epochs=1, out=tmp_path / "r")
    assert run.last.steps == 64
    assert any("inside the optimizer" in event for event in run.events)


# Schedules and words


@pytest.mark.parametrize(
    "schedule",
    [
        rb.schedules.Ramp(16, 100, 2000),
        rb.schedules.InsteadOfDecay(
            16, rb.schedules.Rate.cosine(4000, floor=0.01), 100
        ),
    ],
)
def test_rounding_does_not_pass_the_largest(schedule: Any) -> None:
    weight = nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    controller = rb.Controller(schedule, optimizer, 16, multiple=32, rule="linear")
    sizes = []
    for examples in range(0, 5000, 50):
        controller(examples)
        sizes.append(controller.batch_size)
    assert max(sizes) == 96


def test_a_rate_that_reaches_zero_before_the_end_is_refused() -> None:
    with pytest.raises(rb.SettingError, match="zero"):
        rb.train(plain_job, batch_size=32, epochs=4, rate=rb.schedules.Rate.linear(512))
    run = rb.train(
        plain_job, batch_size=32, epochs=1, rate=rb.schedules.Rate.linear(512)
    )
    assert run.last.examples == 512


def test_schedules_and_rates_are_taken_as_words() -> None:
    run = rb.train(plain_job, schedule="stages:0=32,1epochs=64", epochs=2)
    assert run.batch_size == 64
    run = rb.train(plain_job, batch_size=32, rate="cosine:2epochs", epochs=1)
    rate = run.last.lr
    assert rate == pytest.approx(5e-4, rel=0.15)
    with pytest.raises(rb.SettingError):
        rb.train(plain_job, schedule="ramp:32", epochs=1)


def test_batches_skipped_again_and_again_end_the_run() -> None:
    job = poisoned(1)
    calls = {"n": 0}

    def loss(model: nn.Module, batch: Any) -> Tensor:
        calls["n"] += 1
        return mean_loss(model, batch) * (1.0 if calls["n"] < 5 else float("nan"))

    with pytest.raises(rb.JobError, match="20"):
        rb.train(replace(job, loss=loss), batch_size=8, epochs=50, nonfinite="skip")
    assert calls["n"] <= 5 + 20


def test_same_looks_into_everything() -> None:
    """The comparison all of these rest on can fail."""
    assert not same({"a": [torch.zeros(2)]}, {"a": [torch.ones(2)]})
    assert not same({"a": 1}, {"a": 2})
