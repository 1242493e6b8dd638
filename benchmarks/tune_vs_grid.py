"""The plan against a real grid: time to the target, everything in one session.

For every batch size the learning rate is tuned over a grid, and every setting is run to
the target under several seeds. Then, from several batches a user might have today (each
with its own tuned rate), `tune` is asked for a plan, and the plan is run under seeds of
its own. Beside: today's batch, and the largest batch with its rate scaled by the rule.

Times are CPU seconds of training steps on one thread, evaluations left out.

    python benchmarks/tune_vs_grid.py                          # about an hour
    python benchmarks/tune_vs_grid.py --jobs digits --quick    # a minute
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch

import rightbatch as rb
from results import FOLDER, write_json
from rightbatch.schedules.scaling import Scaling, apply_scaling, scaling_for
from rightbatch.training.loop import train_rows
from rightbatch.training.run_state import RunState
from rightbatch.training.settings import Settings


@dataclass(frozen=True)
class Grid:
    """What is tried for one job."""

    batches: tuple[int, ...]
    rates: tuple[float, ...]
    todays: tuple[int, ...]
    limit_s: float
    budget_s: float


GRIDS = {
    "digits": Grid(
        (4, 8, 16, 32, 64, 128, 256, 512),
        (0.0125, 0.025, 0.05, 0.1, 0.2, 0.4),
        (16, 64, 256),
        5.0,
        30.0,
    ),
    "stdlib_gpt": Grid(
        (4, 8, 16, 32, 64, 128, 256),
        (1e-3, 2e-3, 4e-3, 8e-3, 16e-3),
        (64, 256, 16),
        90.0,
        60.0,
    ),
}
GIVE_UP = 3.0  # a setting this much slower than its batch's best so far is stopped


def run_to_target(
    job: rb.Job,
    batch: int,
    seed: int,
    limit_s: float,
    *,
    rate: float | None = None,
    scaling: Scaling | None = None,
) -> dict[str, Any]:
    """One run; ``seconds`` is infinite where the target was not met."""
    torch.manual_seed(seed)
    job = dataclasses.replace(job, seed=seed)
    settings = Settings(
        schedule=rb.schedules.Constant(batch), end=math.inf, rule="none"
    )
    run = RunState.start(job, settings)
    if scaling is not None:
        apply_scaling(run.optimizer, scaling)
    if rate is not None:
        for group in run.optimizer.param_groups:
            group["lr"] = rate
    row = None
    try:
        for row in train_rows(run):
            if row.process_time_s >= limit_s:
                break
    except rb.JobError:  # diverged
        row = None
    reached = row is not None and row.metric is not None and job.met(row.metric)
    return {
        "seconds": row.process_time_s if row and reached else math.inf,
        "steps": row.steps if row else 0,
        "examples": row.examples if row else 0,
    }


def median_seconds(runs: list[dict[str, Any]]) -> float:
    """Median time to the target over seeds."""
    return statistics.median(r["seconds"] for r in runs)


def run_grid(job: rb.Job, grid: Grid, seeds: int) -> dict[int, dict[float, list[Any]]]:
    """Every batch at every rate; hopeless settings are given up early."""
    found: dict[int, dict[float, list[Any]]] = {}
    for batch in grid.batches:
        found[batch], best = {}, grid.limit_s
        for rate in grid.rates:
            runs: list[Any] = []
            for seed in range(seeds):
                limit = min(grid.limit_s, GIVE_UP * best)
                runs.append(run_to_target(job, batch, seed, limit, rate=rate))
                if sum(math.isinf(r["seconds"]) for r in runs) > seeds / 2:
                    break  # the median is infinite already
            found[batch][rate] = runs
            best = min(best, median_seconds(runs))
        rate, runs = min(found[batch].items(), key=lambda kv: median_seconds(kv[1]))
        print(
            f"  B {batch:>4}  rate {rate:<8g} {median_seconds(runs):8.3f} s", flush=True
        )
    return found


def best_rate(rates: dict[float, list[Any]]) -> tuple[float, float]:
    """The best rate of a batch and its median seconds."""
    rate = min(rates, key=lambda r: median_seconds(rates[r]))
    return rate, median_seconds(rates[rate])


def with_today(job: rb.Job, batch: int, rate: float) -> rb.Job:
    """The job as a user would have it who trains at this batch and rate today."""
    original = job.optimizer

    def optimizer(params: Any) -> torch.optim.Optimizer:
        made = original(params)
        for group in made.param_groups:
            group["lr"] = rate
        return made

    return dataclasses.replace(job, batch_size=batch, optimizer=optimizer)


def whole_grid(job: rb.Job, grid: Grid, seeds: int) -> dict[str, Any]:
    """Run the grid; the best rate, its seconds and steps for every batch."""
    cpu = time.process_time()
    found = run_grid(job, grid, seeds)
    cpu = time.process_time() - cpu
    best = {}
    for batch, rates in found.items():
        rate, seconds = best_rate(rates)
        steps = statistics.median(r["steps"] for r in rates[rate])
        best[str(batch)] = {"rate": rate, "seconds": seconds, "steps": steps}
    law = rb.fit_steps([int(b) for b in best], [v["steps"] for v in best.values()])
    c = law.critical_batch
    return {
        "cpu_s": cpu,
        "best": best,
        "critical_batch": [c.value, c.low, c.high],
        "seconds": {
            str(b): {str(r): [x["seconds"] for x in runs] for r, runs in rates.items()}
            for b, rates in found.items()
        },
    }


def compare(
    name: str, grid: Grid, seeds: int, earlier: dict[str, Any] | None
) -> dict[str, Any]:
    """The whole comparison for one job; ``earlier`` is a grid already run."""
    job = rb.load_job(name)
    print(f"\n{name}: grid of {len(grid.batches)} x {len(grid.rates)}, {seeds} seeds")
    ran = earlier or whole_grid(job, grid, seeds)
    per_batch = {int(b): (v["rate"], v["seconds"]) for b, v in ran["best"].items()}
    best = min(per_batch, key=lambda b: per_batch[b][1])
    value, low, high = ran["critical_batch"]
    print(
        f"  grid's best: B = {best}, {per_batch[best][1]:.3f} s; "
        f"CPU {ran['cpu_s']:.0f} s; "
        f"fitted B_crit {value:.1f} ({low:.1f} to {high:.1f})",
        flush=True,
    )
    rows = []
    for today in grid.todays:
        mine = with_today(job, today, per_batch[today][0])
        cpu = time.process_time()
        tuning = rb.tune(mine, budget_s=grid.budget_s)
        cpu = time.process_time() - cpu
        plan = tuning.plan
        fresh = range(100, 100 + seeds + 2)  # seeds the grid has not seen
        limit = 10 * per_batch[best][1] + 1
        planned, now, largest = [], [], []
        top = max(grid.batches)
        rule = scaling_for(tuning.measurements.job.family, today, top)
        best_again = []
        for seed in fresh:  # interleaved, so that the machine treats all alike
            planned.append(
                run_to_target(mine, plan.batch_size, seed, limit, scaling=plan.scaling)
            )
            now.append(run_to_target(mine, today, seed, limit))
            if len(largest) < 3:  # the slowest by far
                largest.append(run_to_target(mine, top, seed, limit, scaling=rule))
            best_again.append(
                run_to_target(job, best, seed, limit, rate=per_batch[best][0])
            )
        reference = median_seconds(best_again)
        row = {
            "today": today,
            "today_rate": per_batch[today][0],
            "plan": plan.batch_size,
            "plan_rate": plan.lr,
            "decided_by": plan.decided_by,
            "critical_batch": plan.predicted["critical_batch"].value,
            "plan_vs_best": median_seconds(planned) / reference,
            "plan_vs_today": median_seconds(planned) / median_seconds(now),
            "largest_vs_best": median_seconds(largest) / reference,
            "predicted_vs_today": plan.predicted["time_vs_today"].value,
            "tune_cpu_vs_grid": cpu / ran["cpu_s"],
        }
        rows.append(row)
        print(
            f"  today {today:>4}: plan B {plan.batch_size:>4} lr {plan.lr:<9.3g} "
            f"vs best {row['plan_vs_best']:.2f}  vs today {row['plan_vs_today']:.2f}  "
            f"largest vs best {row['largest_vs_best']:.2f}  "
            f"tune/grid CPU {row['tune_cpu_vs_grid']:.3f}",
            flush=True,
        )
    return {"grid": ran, "rows": rows}


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", nargs="+", default=list(GRIDS), choices=list(GRIDS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a smaller grid, 1 seed")
    parser.add_argument(
        "--reuse",
        action="store_true",
        help="take the grid of the earlier result; its best setting is run again",
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in given.jobs:
        grid, seeds = GRIDS[name], given.seeds
        if given.quick:
            grid = Grid(grid.batches[1:], grid.rates[2:5], grid.todays[:1], 5.0, 10.0)
            seeds = 1
        title = f"tune-vs-grid-{name}" + ("-quick" if given.quick else "")
        earlier = None
        if given.reuse:
            text = (FOLDER / f"{title}.json").read_text(encoding="utf-8")
            earlier = json.loads(text)["results"]["grid"]
        write_json(title, compare(name, grid, seeds, earlier))


if __name__ == "__main__":
    main()
