"""The law of batch and rate on the stored grids, and the noise beside it.

Fitted to every finished cell of a job's grid, the others as bounds: how well it fits,
its critical batch N and exponent p. With ``--noise`` the job trains once more from its
grid's best batch, and N by the gradient's noise stands beside: plain, and in the
optimizer's own metric.

    python benchmarks/truth/law.py
    python benchmarks/truth/law.py --noise --jobs words lstm
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from pathlib import Path
from typing import Any

import torch

from grid import Truth
from jobs import JOBS
from rightbatch.core.progress import Progress
from rightbatch.fit.critical_batch import critical_from_noise
from rightbatch.fit.passages import Passage, Passages
from rightbatch.fit.rate_law import RateLaw, RatePrior, fit_rate_law
from rightbatch.job.optimizers import kinds_of
from rightbatch.plan.laws import LR_SPREAD, POWERS
from rightbatch.tuning.measure_job import measure_job
from rightbatch.tuning.measurement_record import Record
from starts import with_today

sys.path.insert(0, str(Path(__file__).parents[1]))
from results import write_json

NOISE_S = 40.0  # budget of measuring, a quarter of which goes to noise


def fitted(name: str) -> RateLaw:
    """The law of a grid, with a prior as wide as without any noise measured."""
    truth, job = Truth.load(name), JOBS[name].make()
    batch, rate = truth.best
    family = kinds_of(job.make_optimizer(job.make_model()))[0].family
    power, spread = POWERS[family]
    prior = RatePrior(
        batch_size=batch,
        lr=rate,
        noise=math.log(batch),
        noise_spread=3.0,
        growth=0.0,
        growth_spread=0.01,
        power=power,
        power_spread=2 * spread,
        lr_spread=LR_SPREAD,
    )
    passages = tuple(
        Passage(
            batch_size=b,
            lr=r,
            seed=seed,
            level=0,
            steps=float(run.steps),
            reached=run.reached,
        )
        for (b, r), runs in truth.cells.items()
        for seed, run in enumerate(runs)
        if run.end != "diverged"
    )
    one = Passages(levels=(0.0,), seconds=(1.0,), to_target=True, passages=passages)
    return fit_rate_law(one, prior)


def noise_of(name: str) -> dict[str, float]:
    """N by the noise along a run from the grid's best setting, in both metrics."""
    truth = Truth.load(name)
    batch, rate = truth.best
    job = with_today(JOBS[name].make(), batch, rate)
    record = Record()
    measure_job(job, record, Progress(), budget_s=NOISE_S)
    points = record.measurements.noise
    found = {"plain": critical_from_noise(points, batch).critical_batch.value}
    own = [dataclasses.replace(p, plain=m) for p in points if (m := p.preconditioned)]
    if len(own) > 1:
        found["optimizer's"] = critical_from_noise(own, batch).critical_batch.value
    return found


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", nargs="+", default=list(JOBS), choices=list(JOBS))
    parser.add_argument("--noise", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[str, dict[str, Any]] = {}
    for name in given.jobs:
        law = fitted(name)
        row: dict[str, Any] = {
            "r_squared": law.r_squared,
            "scatter": law.scatter,
            "critical_batch": law.critical_batch,
            "power": law.power,
        }
        text = (
            f"{name:<12} R2 {law.r_squared:5.2f}  N {law.critical_batch}  "
            f"p {law.power.value:.2f} ({law.power.low:.2f} to {law.power.high:.2f})"
        )
        if given.noise:
            row["noise"] = noise_of(name)
            shown = ", ".join(f"{k} {v:.3g}" for k, v in row["noise"].items())
            text += f"  noise: {shown}"
        rows[name] = row
        print(text, flush=True)
    write_json("truth-law" + ("-noise" if given.noise else ""), rows)


if __name__ == "__main__":
    main()
