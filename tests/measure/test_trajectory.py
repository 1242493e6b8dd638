"""Along the measuring run."""

from dataclasses import replace

from cases import regression_job, with_target
from rightbatch.measure.trajectory import measure_trajectory
from rightbatch.training.run_state import RunState


def test_the_warm_start_lies_early_in_the_run() -> None:
    job = with_target(regression_job(), target=1.5)
    found = measure_trajectory(RunState.start(job), budget_s=20.0)
    assert found.reached
    assert found.warm is not None
    assert found.warm.steps < found.metrics[-1].step


def test_it_ends_with_todays_run() -> None:
    """Beyond its length there is no schedule, and nothing to learn from."""
    job = replace(regression_job(), rate="cosine:3epochs", epochs=3)
    run = RunState.start(job)
    measure_trajectory(run, budget_s=20.0)
    assert run.examples == 3 * 256
