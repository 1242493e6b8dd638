"""Branches from a checkpoint: exact, gone on with, and right where N is known."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rightbatch as rb
from cases import noisy_quadratic_job, regression_job, with_target
from rightbatch.core.json_io import read_json
from rightbatch.sweep.branch_record import FORMAT, BranchRecord
from rightbatch.sweep.branching import branch_probe
from rightbatch.training.any_checkpoint import load_start

FACTORS, BRANCHES = (1, 1 / 2, 2), 7  # on each stream: 2, 2 and 3 rates
WIDTH = 64


def job(**more: Any) -> rb.Job:
    made = with_target(regression_job(examples=512, batch_size=8))
    return dataclasses.replace(made, target=None, **more)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 160 examples at a batch of 8."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    rb.train(job(), out=folder, examples=160)
    return folder


def probe(run: Path, of: rb.Job | None = None, **more: Any) -> Any:
    given: dict[str, Any] = {"factors": FACTORS, "streams": 2, "examples": 192}
    return branch_probe(of or job(), run, **{**given, **more})


def kept(path: Path) -> BranchRecord:
    return read_json(path, BranchRecord, FORMAT)


def quadratic_critical(examples: float, at: float) -> float:
    """N of the quadratic at the loss that is best after so many examples.

    Every batch takes its best rate; losses are expectations, in closed form.
    """
    steep, batches = np.logspace(0, -1.5, WIDTH), [4, 8, 16, 32, 64]
    curves: dict[int, list[np.ndarray]] = {b: [] for b in batches}
    for b in batches:
        for lr in 2.0 ** np.arange(-5, 1, 0.25):
            squared, losses = np.full(WIDTH, at**2), []
            for _ in range(1024 // b):
                squared = (1 - lr * steep) ** 2 * squared + (lr * steep) ** 2 / b
                losses.append(0.5 * (steep * squared).mean())
            curves[b].append(np.array(losses))
    level = min(c[int(examples / b) - 1] for b in batches for c in curves[b])
    needed = [
        min(int((c <= level).argmax()) + 1 for c in curves[b] if c.min() <= level)
        for b in batches
    ]
    return rb.fit_steps(batches, needed).critical_batch.value


def test_it_finds_the_critical_batch_of_a_quadratic(tmp_path: Path) -> None:
    # Away from the middle by 0.4 in all 64 directions: N of the gradients there is
    # 1 / 0.4^2 = 6.25, but the steep ones are soon done with, and N of what is left is
    # ten times as large. Branches of 512 examples have levels from an eighth to 0.8 of
    # that: N is to lie between those of both ends, give or take a factor 1.5. Seeds
    # are the job's; 4 streams. [measured: over 20 seeds at 3 streams the interval holds
    # the N of the beginning of a branch in 18, that of its end, three times as large,
    # in 13]
    made = noisy_quadratic_job(0.4, 8, width=WIDTH)
    start = {"model": {"at": torch.full((WIDTH,), 0.4)}, "step": 10}
    torch.save(start, tmp_path / "a.pt")
    factors = (1, 1 / 2, 2, 4, 8)
    found = probe(tmp_path / "a.pt", made, factors=factors, streams=4, examples=512)
    first, last = (quadratic_critical(share * 512, 0.4) for share in (1 / 8, 0.8))
    assert 40 < first < last < 160
    assert first / 1.5 < found.critical_batch.value < last * 1.5
    assert found.critical_batch.low < last
    assert found.critical_batch.high > first
    assert found.noise_scale.value == pytest.approx(6.25, rel=0.3)
    ratio = found.critical_batch.value / found.noise_scale.value
    assert found.calibration.value == pytest.approx(ratio)
    assert found.calibration.low < ratio < found.calibration.high
    # Near N twice the examples are needed: the largest batch costs, those below do not.
    assert found.penalties[-1].loss.low > 0
    assert 8 <= found.largest_without_loss < 64
    assert found.verdict.startswith("The critical" if found.decided else "Undecided")


def test_the_first_branch_is_the_run_gone_on_with(run: Path, tmp_path: Path) -> None:
    probe(run, record=tmp_path / "b.json")
    lanes = kept(tmp_path / "b.json").race.lanes
    rb.train(job(), out=tmp_path / "longer", examples=160 + 192)
    straight = load_start(tmp_path / "longer")
    model = job().make_model()
    model.load_state_dict(straight.model)
    assert lanes[0].steps[-1] == 192 // 8
    assert lanes[0].metrics[-1] == job().evaluated(model)


def test_a_branch_is_kept_and_gone_on_with(run: Path, tmp_path: Path) -> None:
    whole = probe(run, record=tmp_path / "whole.json")
    record, path = kept(tmp_path / "whole.json"), tmp_path / "cut.json"
    lanes = record.race.lanes
    assert len(lanes) == 2 * BRANCHES
    cut = dataclasses.replace(record.race, lanes=lanes[:8])
    dataclasses.replace(record, race=cut).save(path)
    with pytest.raises(rb.UnidentifiedError, match="too few branches") as refused:
        probe(run, record=path, budget_s=1e-9)
    assert "8 of 14" in refused.value.seen
    again = probe(run, record=path)
    assert kept(path).race.lanes == lanes
    assert dataclasses.replace(again, seconds=whole.seconds) == whole


def test_batch_and_rate_are_the_checkpoints_and_the_share_the_jobs(
    run: Path, tmp_path: Path
) -> None:
    # Of another trainer: weights and optimizer, and no place in the stream.
    torch.save(
        {"model": load_start(run).model, "optimizer": load_start(run).optimizer},
        tmp_path / "a.pt",
    )
    found = probe(tmp_path / "a.pt")
    assert (found.batch_size, found.lr, found.examples) == (8, 0.01, 0)
    assert [p.batch_size for p in found.penalties] == [4, 8, 16]
    assert found.trained == 2 * BRANCHES * 192
    assert found.run_share is None
    length = probe(run, job(examples=320))
    assert (length.examples, length.run_share) == (160, 0.5)


def test_without_evaluate_examples_are_held_out(run: Path, tmp_path: Path) -> None:
    probe(run, job(evaluate=None), record=tmp_path / "b.json")
    race = kept(tmp_path / "b.json").race
    assert race.metric == "held-out loss"
    assert all(math.isfinite(m) for lane in race.lanes for m in lane.metrics)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"factors": (1, 2)}, "three batches"),
        ({"factors": (1 / 2, 2, 4)}, "the run's own among them"),
        ({"factors": (1, 2, 1000)}, "three batches"),
        ({"examples": 100}, "8 steps of the largest"),
        ({"budget_s": 0}, "budget_s must be positive"),
        ({"streams": 1}, "streams must be at least 2"),
        ({"of": regression_job(width=6)}, "another job"),
    ],
)
def test_what_makes_no_sense_is_refused(
    run: Path, given: dict[str, Any], reason: str
) -> None:
    with pytest.raises(rb.SettingError, match=reason):
        probe(run, **given)


def test_branches_of_another_start_are_not_mixed(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    probe(run, record=path)
    with pytest.raises(rb.SettingError, match="holds other branches: horizon differs"):
        probe(run, record=path, examples=256)
    moved = dataclasses.replace(kept(path).race, start=2 * kept(path).race.start)
    dataclasses.replace(kept(path), race=moved).save(path)
    with pytest.raises(rb.SettingError, match="metric at the start differs"):
        probe(run, record=path)
    path.write_text(json.dumps({"format": FORMAT}))
    with pytest.raises(rb.RunFolderError, match="damaged"):
        probe(run, record=path)


def test_a_folder_without_checkpoints_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(rb.RunFolderError, match="holds no checkpoint"):
        probe(tmp_path)


def test_a_rate_of_zero_is_refused(tmp_path: Path) -> None:
    ended = job(rate="linear:160", examples=160)
    rb.train(ended, out=tmp_path / "run")
    with pytest.raises(rb.SettingError, match="no learning rate"):
        probe(tmp_path / "run", ended)


def test_a_run_whose_rate_is_too_low_is_told_so(tmp_path: Path) -> None:
    """A twentieth of a good rate: nothing tells batches apart at lower ones still."""
    made = noisy_quadratic_job(0.02, 8, width=WIDTH)
    start = {"model": {"at": torch.full((WIDTH,), 0.4)}, "step": 10}
    torch.save(start, tmp_path / "a.pt")
    found = probe(tmp_path / "a.pt", made)
    assert not found.decided
    assert "a run at a higher rate would settle it" in found.verdict
