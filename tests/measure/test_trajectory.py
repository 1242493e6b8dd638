"""Along the measuring run."""

import itertools

from hypothesis import strategies as st

from cases import regression_job, with_target
from rightbatch.measure.trajectory import measure_trajectory
from rightbatch.training.run_state import RunState
from rightbatch.tuning.race import MARKS, Curve

curves = st.lists(st.floats(0.01, 10), min_size=MARKS, max_size=MARKS).map(
    lambda values: Curve(
        start=5.0,
        times=[float(i + 1) for i in range(MARKS)],
        values=list(itertools.accumulate([5.0, *values], min))[1:],
    )
)


def test_the_warm_start_lies_early_in_the_run() -> None:
    job = with_target(regression_job(), target=1.5)
    found = measure_trajectory(RunState.start(job), budget_s=20.0)
    assert found.reached
    assert found.warm is not None
    assert found.warm.steps < found.metrics[-1].step
