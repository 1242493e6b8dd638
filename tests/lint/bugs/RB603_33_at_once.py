"""Thirty-three examples at once, where 32 fill the tiles of the device."""

from __future__ import annotations

from typing import Any

from cases import made_up, regression_job
from made_runs import run_folder, with_a_step

CODE = "RB603"


RUN = run_folder(with_a_step(made_up(t0=5e-3, critical=64, jitter=0.005), 32, 1.3))


def buggy() -> dict[str, Any]:
    return {"job": regression_job(1024, batch_size=33), "run": RUN}


def fixed() -> dict[str, Any]:
    return {"job": regression_job(1024, batch_size=32), "run": RUN}
