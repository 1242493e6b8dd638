"""Whether threads help."""

import pytest
import torch

from cases import regression_job
from rightbatch.measure.threads import WORTH, pick_threads
from rightbatch.training.run_state import RunState
from slow_steps import Clock, slow_job


def test_threads_are_picked_by_time_and_left_as_they_were() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        picked, seconds = pick_threads(RunState.start(regression_job()))
        assert torch.get_num_threads() == 2
        assert set(seconds) == {1, 2}
        assert picked == (1 if seconds[1] * WORTH < seconds[2] else 2)
    finally:
        torch.set_num_threads(before)
    torch.set_num_threads(1)
    assert pick_threads(RunState.start(regression_job())) == (1, {})


@pytest.mark.parametrize("example_s", [1e-3, 0.02, 0.2, 0.4])
def test_long_steps_are_timed_on_a_part_of_the_batch(
    monkeypatch: pytest.MonkeyPatch, example_s: float
) -> None:
    """Steps of all, half or two of 64 examples, in three seconds; or none at all."""
    clock, before = Clock(monkeypatch), torch.get_num_threads()
    run = RunState.start(slow_job(clock, example_s=example_s, batch_size=64))
    try:
        torch.set_num_threads(2)
        picked, seconds = pick_threads(run, 3.0)
        assert torch.get_num_threads() == picked == 2  # as fast: as it was
    finally:
        torch.set_num_threads(before)
    assert clock.now <= 3.0
    size = {1e-3: 64, 0.02: 32, 0.2: 2, 0.4: None}[example_s]
    expected = {} if size is None else {1: size * example_s, 2: size * example_s}
    assert seconds == pytest.approx(expected)
