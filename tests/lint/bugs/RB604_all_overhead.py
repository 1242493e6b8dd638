"""Steps of eight examples take as long as steps of 32."""

from __future__ import annotations

from typing import Any

from cases import regression_job
from made_runs import run_folder

CODE = "RB604"


RUN = run_folder(t0=2e-2, t1=2e-4, critical=64.0, today=32)


def buggy() -> dict[str, Any]:
    return {"job": regression_job(1024, batch_size=32), "run": RUN, "micro_batch": 8}


def fixed() -> dict[str, Any]:
    return {"job": regression_job(1024, batch_size=128), "run": RUN}
