"""Where a run ends, and who says so."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import rightbatch as rb
from cases import made_up, regression_job, with_target
from rightbatch.training.requested import run_end

PLAN = replace(rb.decide(made_up(t0=4e-3, t1=1e-3, critical=100)).plan, examples=700.4)
JOB = regression_job()  # 256 examples
LINEAR, FLOOR = rb.schedules.Rate.linear(512), rb.schedules.Rate.cosine(512, floor=0.1)


@pytest.mark.parametrize(
    ("job", "more", "end", "why"),
    [
        (replace(JOB, epochs=3), {"asked": 99.0, "plan": PLAN}, 99, "as asked for"),
        (replace(JOB, epochs=3), {}, 768, "as the job says"),
        (JOB, {"plan": PLAN}, 700, "as planned"),
        (with_target(JOB), {}, 256_000, "nothing else says how long"),
        (with_target(JOB), {"rate": FLOOR}, 256_000, "nothing else says how long"),
        (with_target(JOB), {"rate": LINEAR}, 512, "the learning rate is zero"),
    ],
)
def test_the_end_of_a_run_has_a_reason(
    job: rb.Job, more: dict[str, Any], end: float, why: str
) -> None:
    found = run_end(job, **{"plan": None, "rate": None, "asked": None, **more})
    assert found[0] == end
    assert why in found[1]


def test_without_a_target_nothing_ends_it() -> None:
    with pytest.raises(rb.SettingError, match="the run has no end") as refused:
        run_end(JOB, None, rate=LINEAR, asked=None)
    assert "--epochs 10" in refused.value.fix
