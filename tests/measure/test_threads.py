"""Whether threads help."""

import torch

from cases import regression_job
from rightbatch.measure.threads import WORTH, pick_threads
from rightbatch.training.run_state import RunState


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
