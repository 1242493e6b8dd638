"""A run that begins from a checkpoint stands where it stood."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import rightbatch as rb
from cases import regression_job, with_target
from rightbatch.training.any_checkpoint import Start, load_start
from rightbatch.training.run_state import RunState
from rightbatch.training.start_from import begin_from


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))


def job_of(lr: float = 0.01, **more: Any) -> rb.Job:
    def optimizer(params: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(params, lr=lr)

    return with_target(regression_job(model=normed, optimizer=optimizer, **more), 0.0)


def saved_by_a_loop(path: Path, steps: int = 30) -> tuple[nn.Module, Any]:
    """Somebody's own training, with a scheduler; its model and optimizer."""
    job, model = job_of(), normed()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 60)
    x, y = job.data
    for step in range(steps):
        optimizer.zero_grad()
        (model(x[step::9]) - y[step::9]).square().mean().backward()
        optimizer.step()
        scheduler.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save({**state, "step": steps}, path)
    return model, optimizer


def test_the_run_goes_on_where_it_was_saved(tmp_path: Path) -> None:
    model, optimizer = saved_by_a_loop(tmp_path / "a.pt")
    run = RunState.start(job_of())
    fresh = run.evaluated()
    notes = begin_from(run, load_start(tmp_path / "a.pt"))
    assert run.evaluated() == pytest.approx(run.job.evaluated(model), rel=1e-6)
    assert run.evaluated() != pytest.approx(fresh, rel=0.1)
    assert (run.steps, run.examples) == (30, 480)
    for own, theirs in zip(run.parameters, model.parameters(), strict=True):
        moments = run.optimizer.state[own], optimizer.state[theirs]
        assert torch.equal(moments[0]["exp_avg_sq"], moments[1]["exp_avg_sq"])
    assert run.optimizer.param_groups[0]["lr"] == pytest.approx(0.005)
    assert [n.what for n in notes] == [
        "the run begins from a.pt: step 30, 480 examples",
        "today's lr is 0.005, not 0.01: as a.pt has it",
    ]
    # And it is forked and trained on as any other run.
    snapshot = run.snapshot()
    run.step()
    assert run.steps == 31
    run.rewind(snapshot)
    assert run.evaluated() == pytest.approx(run.job.evaluated(model), rel=1e-6)


def test_weights_alone_leave_the_optimizer_as_the_jobs(tmp_path: Path) -> None:
    model, _ = saved_by_a_loop(tmp_path / "a.pt")
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    run = RunState.start(job_of(lr=0.02))
    notes = begin_from(run, load_start(tmp_path / "weights.pt"))
    assert run.evaluated() == pytest.approx(run.job.evaluated(model), rel=1e-6)
    assert not run.optimizer.state
    assert run.optimizer.param_groups[0]["lr"] == 0.02
    assert (run.steps, run.examples) == (0, 0)
    assert "how far it had come is not known" in notes[0].what
    assert "its moments start anew" in notes[1].what
    assert {n.severity for n in notes} == {"note"}


def test_a_run_of_our_own_with_all_of_its_buffers(tmp_path: Path) -> None:
    trained = rb.train(job_of(), batch_size=16, examples=160, out=tmp_path / "run")
    run = RunState.start(job_of())
    notes = begin_from(run, load_start(tmp_path / "run"))
    assert run.evaluated() == pytest.approx(trained.last.metric, rel=1e-6)
    assert (run.steps, run.examples, len(notes)) == (10, 160, 1)
    other = RunState.start(job_of(batch_size=32))
    with pytest.raises(rb.SettingError, match="another batch") as caught:
        begin_from(other, load_start(tmp_path / "run"))
    assert caught.value.seen == "B = 16 there, batch_size=32 in the job"


def test_how_far_it_had_come_is_told_in_any_unit() -> None:
    weights = normed().state_dict()
    units: list[dict[str, Any]] = [{"examples": 512}, {"steps": 32}, {"epochs": 2.0}]
    for unit in units:
        run = RunState.start(job_of())  # 256 examples, in batches of 16
        begin_from(run, Start(path=Path("a.pt"), model=weights, **unit))
        assert (run.steps, run.examples) == (32, 512)


def test_what_cannot_be_gone_on_from_leaves_the_run_as_it_is(tmp_path: Path) -> None:
    saved_by_a_loop(tmp_path / "ended.pt", steps=60)  # the scheduler is at its end
    run = RunState.start(job_of())
    before = run.evaluated()
    with pytest.raises(rb.SettingError, match=r"learning rate in .* is zero"):
        begin_from(run, load_start(tmp_path / "ended.pt"))
    saved_by_a_loop(tmp_path / "a.pt")
    start = load_start(tmp_path / "a.pt")
    whole = RunState.start(job_of(epochs=2))
    with pytest.raises(rb.SettingError, match="has ended"):
        begin_from(whole, Start(path=Path("a.pt"), model=start.model, epochs=2))
    sgd = RunState.start(with_target(regression_job(model=normed)))
    with pytest.raises(rb.SettingError, match="the optimizer in"):
        begin_from(sgd, start)
    assert run.evaluated() == before
    assert run.steps == sgd.steps == 0
