"""At 64 examples the machine has long been at work, and 16 are critical."""

from __future__ import annotations

from typing import Any

from cases import regression_job
from made_runs import run_folder

CODE = "RB605"


RUN = run_folder(t0=1e-3, t1=5e-4, critical=16.0, today=64)


def buggy() -> dict[str, Any]:
    return {"job": regression_job(1024, batch_size=64), "run": RUN}


def fixed() -> dict[str, Any]:
    return {"job": regression_job(1024, batch_size=16), "run": RUN}
