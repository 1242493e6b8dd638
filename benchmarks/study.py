"""A study against the grid of the truth: how near its best is, and at what cost.

The study's answer and the grid's best then run to the target by the plain loop of
`truth/grid.py` under eight seeds that neither has seen, timed by the grid's own clock
(steps times its step times). So is the training of the trials: the grid counts its cost
alike. Asked of all trials, and of the first ones that cost a fifth of the grid's.

    PYTHONPATH=src:benchmarks/truth python benchmarks/study.py --jobs digits logistic
"""

from __future__ import annotations

import argparse
import functools
import math
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import rightbatch as rb
from grid import Truth, constant
from jobs import JOBS
from results import write_json
from rightbatch.measure.measurements import Lane, Measurements
from rightbatch.plan.choice import choose
from rightbatch.sweep.batch_rate_study import Study, study_of
from rightbatch.sweep.studying import study
from starts import median_seconds, under_seeds

SHARE = 0.2  # of the grid's cost


class Judge:
    """What a setting really takes, on the grid's clock."""

    def __init__(self, job: rb.Job, name: str) -> None:
        self.job, self.truth = job, Truth.load(name)
        self.seconds = functools.cache(self._seconds)

    def _seconds(self, batch: int, rate: float) -> float:
        truth, step_s = self.truth, self.truth.time_of_step(batch)
        change, piece = constant(rate), truth.piece
        return median_seconds(
            under_seeds(self.job, batch, change, piece, step_s, truth), step_s
        )

    def regret(self, found: Study) -> dict[str, Any]:
        """The study's best over the grid's, and what it says of N."""
        if found.best is None:
            return {"over_best": math.inf}
        mine = self.seconds(found.best.batch_size, found.best.lr)
        return {
            "batch_size": found.best.batch_size,
            "lr": found.best.lr,
            "repeats": found.best.runs,
            "over_best": mine / self.seconds(*self.truth.best),
            "critical_batch": found.critical_batch,
        }

    def cost(self, lanes: tuple[Lane, ...]) -> float:
        """Of lanes, over the grid's."""
        seconds = (
            x.steps[-1] * self.truth.time_of_step(x.batch_size)
            for x in lanes
            if x.steps
        )
        return sum(seconds) / self.truth.cpu_s


def measured(name: str, trials: int) -> dict[str, Any]:
    """One job: the study, and what its first trials would have said."""
    job = JOBS[name].make()
    judge = Judge(job, name)
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        whole = study(job, Path(folder) / "s", trials=trials)
        cpu_s = time.process_time() - began
        measurements = Measurements.load(Path(folder) / "s" / "measurements.json")
    lanes = whole.race.lanes
    few = max(n for n in range(1, len(lanes) + 1) if judge.cost(lanes[:n]) <= SHARE)
    first = replace(whole.race, lanes=lanes[:few])
    early = study_of(choose(replace(measurements, race=first)))
    row = {
        "job": name,
        "grid_cpu_s": judge.truth.cpu_s,
        "study_cpu_s": round(cpu_s, 2),
        "all": {"runs": len(lanes), "cost": judge.cost(lanes)} | judge.regret(whole),
        "a_fifth": {"runs": few, "cost": judge.cost(lanes[:few])} | judge.regret(early),
    }
    print(row, flush=True)
    return row


def main() -> None:
    """Parse, run, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", nargs="+", default=["digits"], choices=list(JOBS))
    parser.add_argument("--trials", type=int, default=40)
    given = parser.parse_args()
    torch.set_num_threads(1)
    write_json("study", {"rows": [measured(n, given.trials) for n in given.jobs]})


if __name__ == "__main__":
    main()
