"""The stand-in for ``evaluate``: examples that nobody trains on."""

import pytest
import torch

from cases import regression_job
from rightbatch.data.order.held_out import hold_out
from rightbatch.measure.held_out_loss import held_out_loss
from rightbatch.training.run_state import RunState


def test_held_out_loss_is_the_mean_loss_on_examples_nobody_trains_on() -> None:
    job = regression_job(examples=200)
    kept, held = hold_out(200, seed=0)
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(200))
    assert len(held) == 10
    run = RunState.start(job)
    snapshot = run.snapshot()

    def seen() -> list[int]:
        return [int(i) for _ in range(50) for m in run.next_batch() for i in m.indices]

    run.rewind(snapshot, kept=kept)
    first = seen()
    assert set(first) == set(kept.tolist())
    assert sorted(first[:190]) == sorted(kept.tolist())  # each once in a pass
    run.rewind(snapshot, seed=7)
    other = seen()
    assert set(other) == set(first)
    assert other != first
    batch = job.batch(held, torch.device("cpu"))
    expected = float(job.mean_loss(run.model, batch)[0].detach())
    assert held_out_loss(run, held) == pytest.approx(expected, rel=1e-5)
