"""Batches of two where 500 are critical, on a machine that waits."""

from __future__ import annotations

from typing import Any

from cases import regression_job
from made_runs import run_folder

CODE = "RB606"


RUN = run_folder(t0=2e-2, t1=2e-4, critical=500.0, today=64)


def buggy() -> dict[str, Any]:
    return {"job": regression_job(4096, batch_size=2), "run": RUN}


def fixed() -> dict[str, Any]:
    return {"job": regression_job(4096, batch_size=128), "run": RUN}
