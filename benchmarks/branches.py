"""Critical batches by branches along a run, beside noise and the grid of whole runs.

A run of a small batch at the grid's best rate for it stops at some checkpoints; from
each, branches measure the critical batch. The calibration of the first is then held
against the noise at the others. ``--optimizers``: one probe of digits under each.

    python benchmarks/branches.py digits
    python benchmarks/branches.py stdlib_gpt --streams 3
    python benchmarks/branches.py --optimizers
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import rightbatch as rb
from results import write_json
from rightbatch.sweep.branching import BranchProbe, branch_probe
from rightbatch.training.checkpoint import Checkpoints
from rightbatch.training.run_state import RunState

sys.path.insert(0, str(Path(__file__).parent / "truth"))
from grid import Truth
from jobs import JOBS
from law import fitted
from starts import with_today

BATCH = 16  # of the run: below the critical batches of both grids
# Examples of a branch, and batches over the run's own.
CASES: dict[str, tuple[int, tuple[float, ...]]] = {
    "digits": (1024, (1, 1 / 2, 2, 4, 8)),
    "stdlib_gpt": (512, (1, 1 / 4, 1 / 2, 2, 4)),
}
SHARES = (0.25, 0.5, 0.75, 1.0)  # of the run
EARLY = 60  # steps under an optimizer before the branches
ROW = f"{'step':>6} {'measured':>24} {'noise':>22} {'calibrated':>10} {'Merrill':>8}"


class Lion(torch.optim.Optimizer):
    """Sign of a blend of momentum and gradient (Chen et al. 2023, arXiv:2302.06675)."""

    def __init__(self, params: Iterable[Tensor], lr: float) -> None:
        super().__init__(params, {"lr": lr, "betas": (0.9, 0.99)})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update."""
        for group in self.param_groups:
            first, second = group["betas"]
            for p in (p for p in group["params"] if p.grad is not None):
                mean = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                p.sub_(group["lr"] * (first * mean + (1 - first) * p.grad).sign())
                mean.mul_(second).add_(p.grad, alpha=1 - second)


# Rates at a batch of 16: of the grids where there is one, else usual ones. [assumed]
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9),
    "AdamW": lambda params: torch.optim.AdamW(params, lr=2e-3),
    "Muon": lambda params: torch.optim.Muon(params, lr=0.005, weight_decay=0.0),
    "Lion": lambda params: Lion(params, lr=2.5e-4),
}


def probe_at(
    run: RunState, job: rb.Job, folder: Path, case: str, streams: int
) -> tuple[BranchProbe, float]:
    """Branches from where a run stands, and the CPU seconds they took."""
    examples, factors = CASES[case]
    saved = Checkpoints(folder / "checkpoints")
    path = saved.save(run.state(), steps=run.steps, about={})
    clock = time.process_time()
    probe = branch_probe(
        job,
        path,
        budget_s=1e6,
        examples=examples,
        factors=factors,
        streams=streams,
        record=folder / f"{job.name}-{run.steps}.json",
    )
    return probe, time.process_time() - clock


def along(name: str, folder: Path, streams: int) -> dict[str, Any]:
    """Probes along a run of the grid, and what they come to."""
    truth, law = Truth.load(name), fitted(name)
    rate = truth.best_rate(BATCH)
    steps = int(statistics.median(x.steps for x in truth.cells[BATCH, rate]))
    job = with_today(JOBS[name].make(), BATCH, rate)
    tuned = {
        b: truth.seconds((b, truth.best_rate(b))) / s for b, s in truth.step_s.items()
    }
    tuned = {b: s for b, s in tuned.items() if math.isfinite(s)}
    by_runs = rb.fit_steps(list(tuned), list(tuned.values())).critical_batch
    print(f"{name}: grid {law.critical_batch}; its tuned runs alone {by_runs}\n{ROW}")
    run, rows, factor = RunState.start(job), [], math.nan
    for share in SHARES:
        while run.steps < share * steps:
            run.step()
        probe, cpu_s = probe_at(run, job, folder, name, streams)
        noise = probe.noise_scale.value
        if not rows and probe.calibration is not None:
            factor = probe.calibration.value
        rows.append({"probe": probe, "calibrated": factor * noise, "cpu_s": cpu_s})
        print(
            f"{run.steps:>6} {str(probe.critical_batch)[:24]:>24} "
            f"{str(probe.noise_scale)[:22]:>22} {factor * noise:>10.3g} "
            f"{probe.largest_without_loss:>8}",
            flush=True,
        )
    grid = law.critical_batch.value
    values = [row["probe"].critical_batch.value for row in rows]
    middle = math.exp(statistics.fmean(map(math.log, values)))
    both = (grid, by_runs.value)
    within = [sum(max(v / g, g / v) <= 1.5 for v in values) for g in both]
    cost = rows[0]["probe"].trained / (steps * BATCH)
    print(
        f"mean {middle:.3g}; within 1.5 x of the grid's law, and of its tuned runs: "
        f"{within} of {len(values)}; a probe trains {cost:.2g} x the run's examples"
    )
    return {
        "grid": law.critical_batch,
        "grid_tuned_runs": by_runs,
        "run_steps": steps,
        "mean": middle,
        "within_1.5_of_both": within,
        "cost_in_runs": cost,
        "checkpoints": rows,
    }


def by_optimizer(folder: Path, streams: int) -> dict[str, Any]:
    """One probe of digits without biases under each optimizer, early in the run."""
    rows: dict[str, Any] = {}
    for name, make in OPTIMIZERS.items():
        job = dataclasses.replace(
            JOBS["muon"].make(), optimizer=make, name=name, batch_size=BATCH
        )
        run = RunState.start(job)
        while run.steps < EARLY:
            run.step()
        rows[name], _ = probe_at(run, job, folder / name, "digits", streams)
        penalties = ", ".join(
            f"{p.batch_size}: {p.loss.value:+.3f}" for p in rows[name].penalties
        )
        print(f"{name:<6} {rows[name].critical_batch}  loss {penalties}", flush=True)
    return rows


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("job", nargs="?", choices=list(CASES))
    parser.add_argument("--optimizers", action="store_true")
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--folder", type=Path, help="keeps branches, to go on")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if given.optimizers:
            write_json("branches-optimizers", by_optimizer(folder, given.streams))
        else:
            name = given.job or "digits"
            write_json(f"branches-{name}", along(name, folder, given.streams))


if __name__ == "__main__":
    main()
