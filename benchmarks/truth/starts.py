"""`tune` against the truth: from good and bad settings of today, what it answers.

From two batches of every job, at their best rate and at 1/16 to 16 times it, `tune` is
asked for a plan. The plan, today's setting and the grid's best then run to the target
under eight seeds that nothing has seen, all by the plain loop of `grid.py`, in steps
times step time.

    python benchmarks/truth/starts.py --jobs digits --budget 10
    python benchmarks/truth/starts.py --resume --out rows.jsonl    # go on
    python benchmarks/truth/starts.py --summary rows.jsonl
    python benchmarks/truth/starts.py --today-only    # runs that need no `tune`

The product of another day: ``PYTHONPATH=OTHER/src python benchmarks/truth/starts.py
--label before --out before.jsonl``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import rightbatch as rb
from grid import Run, Trainer, Truth, constant, run_to_target, step_times
from jobs import JOBS
from rightbatch.schedules.scaling import apply_scaling

FRESH = Path(__file__).parent / "fresh"
FACTORS = (1.0, 1 / 16, 1 / 4, 4.0, 16.0)  # today's rate over the best of its batch
SEEDS = range(100, 108)  # which the grid has not seen
CAP = 5.0  # a run is given up at so many times the grid's best


@dataclass(frozen=True)
class Start:
    """What somebody trains with today."""

    job: str
    batch: int
    factor: float

    @property
    def key(self) -> str:
        """To find its row again."""
        return f"{self.job} {self.batch} {self.factor:g}"


def starts_of(name: str) -> list[Start]:
    """Two batches around the grid's best, at five rates each."""
    best, known = Truth.load(name).best[0], JOBS[name].batches
    around = (max(best // 4, known[0]), min(best * 4, known[-1]))
    todays = JOBS[name].todays or around
    return [Start(name, batch, f) for batch in todays for f in FACTORS]


def under_seeds(
    job: rb.Job,
    batch: int,
    change: Callable[[torch.optim.Optimizer], None],
    piece: int,
    step_s: float,
    truth: Truth,
) -> list[Run]:
    """A setting under every fresh seed, given up at ``CAP`` times the grid's best."""
    most = CAP * truth.seconds(truth.best) / step_s
    runs: list[Run] = []
    for seed in SEEDS:
        trainer = Trainer(job, batch, seed, change, piece)
        runs.append(run_to_target(trainer, most, truth.first_evaluation))
        if sum(not run.reached for run in runs) >= len(SEEDS) / 2:
            break  # the median is infinite already
    return runs


def median_seconds(runs: Sequence[Run], step_s: float) -> float:
    """Median time to the target; infinite where half of the seeds fail."""
    ordered = sorted(run.steps if run.reached else math.inf for run in runs)
    ordered += [math.inf] * (len(SEEDS) - len(ordered))
    return statistics.median(ordered) * step_s


def known_runs(job: rb.Job, truth: Truth, batch: int, rate: float) -> list[Run]:
    """Fresh runs of a batch and rate with nothing else changed, kept in a file."""
    path = FRESH / f"{job.name}.json"
    cap_s = CAP * truth.seconds(truth.best)
    mark = {"target": job.target, "cap_s": float(f"{cap_s:.4g}")}
    stored: dict[str, Any] = {}
    if path.exists():
        stored = json.loads(path.read_text(encoding="utf-8"))
    if stored.get("mark") != mark:
        stored = {"mark": mark, "runs": {}}
    key = f"{batch} {rate:g}"
    if key not in stored["runs"]:
        step_s = truth.time_of_step(batch)
        runs = under_seeds(job, batch, constant(rate), truth.piece, step_s, truth)
        stored["runs"][key] = [[run.steps, run.end] for run in runs]
        FRESH.mkdir(exist_ok=True)
        path.write_text(json.dumps(stored) + "\n", encoding="utf-8")
    return [Run(steps, end) for steps, end in stored["runs"][key]]


def with_today(job: rb.Job, batch: int, rate: float) -> rb.Job:
    """The job as somebody would have it who trains at this batch and rate."""
    original = job.optimizer

    def optimizer(params: Any) -> torch.optim.Optimizer:
        made = original(params)
        constant(rate)(made)
        return made

    return dataclasses.replace(job, batch_size=batch, optimizer=optimizer)


def planned_numbers(plan: Any) -> Callable[[torch.optim.Optimizer], None]:
    """Sets an optimizer's numbers from today's to those of a plan."""

    def change(optimizer: torch.optim.Optimizer) -> None:
        apply_scaling(optimizer, plan.scaling)
        for group in optimizer.param_groups:
            group["lr"] *= getattr(plan, "lr_factor", 1.0)

    return change


def planned_step_s(job: rb.Job, truth: Truth, batch: int, piece: int) -> float:
    """CPU seconds of a plan's step, on the clock of the stored grid.

    A split that the grid does not have is timed beside the grid's best.
    """
    if piece == min(truth.piece or batch, batch):
        return truth.time_of_step(batch)
    best = truth.best[0]
    mine, reference = step_times(job, [(batch, piece), (best, truth.piece)])
    return mine / reference * truth.step_s[best]


def cpu_seconds() -> float:
    """Of this process and of the children it has waited for."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def answer(start: Start, budget_s: float) -> dict[str, Any]:
    """One row: ask `tune`, then run what it says."""
    torch.set_num_threads(1)
    job, truth = JOBS[start.job].make(), Truth.load(start.job)
    job = dataclasses.replace(job, name=start.job)
    rate = float(f"{start.factor * truth.best_rate(start.batch):.4g}")
    mine = with_today(job, start.batch, rate)
    row: dict[str, Any] = {"today_rate": rate, "decided": False}
    wall, cpu = time.monotonic(), cpu_seconds()
    try:
        tuning = rb.tune(mine, budget_s=budget_s)
    except rb.RightbatchError as error:
        return row | costs(wall, cpu, truth) | {"declined": str(error)}
    row |= costs(wall, cpu, truth)
    plan: Any = tuning.plan
    batch, piece = plan.batch_size, min(plan.micro_batch, plan.batch_size)
    step_s = planned_step_s(mine, truth, batch, piece)
    runs = under_seeds(mine, batch, planned_numbers(plan), piece, step_s, truth)
    planned = median_seconds(runs, step_s)
    cell = truth.best
    best = median_seconds(known_runs(job, truth, *cell), truth.step_s[cell[0]])
    today = median_seconds(
        known_runs(job, truth, start.batch, rate), truth.time_of_step(start.batch)
    )
    cap_s = CAP * truth.seconds(cell)
    predicted = plan.predicted["time_vs_today"]
    realised = planned / min(today, cap_s)
    return row | {
        "plan_batch": batch,
        "plan_micro_batch": piece,
        "plan_lr": plan.lr,
        "grade": getattr(plan, "grade", None),
        "decided": plan.decided,
        "decided_by": getattr(plan, "decided_by", ""),
        "verdict": plan.verdict,
        "plan_vs_best": planned / best,
        "reached": sum(run.reached for run in runs),
        "predicted": [predicted.value, predicted.low, predicted.high],
        "realised": realised,
        "today_capped": math.isinf(today),
        "inside": lies_inside(
            realised, math.isinf(today), predicted.low, predicted.high
        ),
    }


def costs(wall: float, cpu: float, truth: Truth) -> dict[str, float]:
    """What `tune` took since these two clocks."""
    spent = cpu_seconds() - cpu
    return {
        "wall_s": round(time.monotonic() - wall, 2),
        "tune_cpu_s": round(spent, 2),
        "tune_vs_grid": round(spent / truth.cpu_s, 4),
    }


def lies_inside(
    realised: float, today_capped: bool, low: float, high: float
) -> bool | None:
    """Whether a ratio lies in its interval; None where neither setting got there.

    Where today's was given up, the ratio is known to be this or less.
    """
    if today_capped:
        return None if math.isinf(realised) else low <= realised
    return low <= realised <= high


def row_of(start: Start, budget_s: float, label: str) -> dict[str, Any]:
    """The row of a process of its own, so that a crash is a row like others."""
    facts = {"label": label, "budget_s": budget_s, **dataclasses.asdict(start)}
    command = [sys.executable, __file__, "--one", json.dumps(dataclasses.asdict(start))]
    done = subprocess.run(
        [*command, "--budget", str(budget_s)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit {done.returncode}"]
        return facts | {"failed": lines[-1]}
    return facts | json.loads(done.stdout.strip().splitlines()[-1])


def line(row: dict[str, Any]) -> str:
    """A row for people."""
    head = f"{row['job']:<12} today {row['batch']:>4} x {row['factor']:<7g}"
    for word in ("failed", "declined"):
        if word in row:
            return f"{head} {word}: {row[word].splitlines()[0]:.90}"
    value, low, high = row["predicted"]
    sign = {True: "in ", False: "OUT", None: "?  "}[row["inside"]]
    bound = "<" if row["today_capped"] else " "
    said = row["grade"] or row["decided_by"]
    return (
        f"{head} -> B {row['plan_batch']:>4} lr {row['plan_lr']:<9.3g} "
        f"{'decided' if row['decided'] else 'open':<7} {said:<12} "
        f"vs best {row['plan_vs_best']:6.2f}  "
        f"vs today {bound}{row['realised']:.2g}, "
        f"said {value:.2g} ({low:.2g} to {high:.2g}) {sign} "
        f"CPU {row['tune_vs_grid']:.2f} grid, {row['wall_s']:.0f} s"
    )


def quantile(values: Sequence[float], share: float) -> float:
    """An order statistic, so that infinities are allowed; NaN of nothing."""
    ordered = sorted(values)
    return ordered[math.ceil(share * len(ordered)) - 1] if ordered else math.nan


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """The table: by job, and all; only the last row of every start counts."""
    rows = list(
        {Start(r["job"], r["batch"], r["factor"]).key: r for r in rows}.values()
    )
    lines = [
        "| job | starts | undecided | failed | decided: median | p90 | worst "
        "| decided, 16 x off: worst | inside | CPU / grid | wall s |",
        "| --- |" + " ---: |" * 10,
    ]
    names = list(dict.fromkeys(row["job"] for row in rows))
    for name in [*names, "all"]:
        mine = [row for row in rows if name in ("all", row["job"])]
        decided = [row for row in mine if row.get("decided")]
        ratios = [row["plan_vs_best"] for row in decided]
        far = [r["plan_vs_best"] for r in decided if r["factor"] in (1 / 16, 16)]
        known = [r["inside"] for r in mine if r.get("inside") is not None]
        failed = sum("failed" in row for row in mine)
        asked = len(mine) - failed
        cost = [row["tune_vs_grid"] for row in mine if "tune_vs_grid" in row]
        wall = [row["wall_s"] for row in mine if "wall_s" in row]
        lines.append(
            f"| {name} | {len(mine)} | {asked - len(decided)} | {failed} "
            f"| {quantile(ratios, 0.5):.2f} | {quantile(ratios, 0.9):.2f} "
            f"| {quantile(ratios, 1.0):.2f} | {quantile(far, 1.0):.2f} "
            f"| {sum(known)} of {len(known)} "
            f"| {quantile(cost, 0.5):.2f} | {quantile(wall, 0.5):.0f} |"
        )
    return "\n".join(lines)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a file, none if it is not there yet."""
    if not path.exists():
        return []
    return [json.loads(text) for text in path.read_text("utf-8").splitlines()]


def evaluate(
    wanted: Sequence[Start], budget_s: float, label: str, processes: int, out: Path
) -> None:
    """Ask and append row by row, ``processes`` at a time."""

    def one(start: Start) -> None:
        row = row_of(start, budget_s, label)
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(line(row), flush=True)

    with ThreadPoolExecutor(processes) as pool:
        list(pool.map(one, wanted))


def run_todays(wanted: Sequence[Start]) -> None:
    """The runs that need no `tune`: today's settings and the grid's best."""
    torch.set_num_threads(1)
    for name in dict.fromkeys(start.job for start in wanted):
        job = dataclasses.replace(JOBS[name].make(), name=name)
        truth = Truth.load(name)
        known_runs(job, truth, *truth.best)
        for start in (s for s in wanted if s.job == name):
            rate = float(f"{start.factor * truth.best_rate(start.batch):.4g}")
            runs = known_runs(job, truth, start.batch, rate)
            seconds = median_seconds(runs, truth.time_of_step(start.batch))
            print(f"{start.key}: {seconds:.3f} s", flush=True)


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", nargs="+", default=list(JOBS), choices=list(JOBS))
    parser.add_argument("--budget", type=float, default=60.0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--label", default="now")
    parser.add_argument("--out", type=Path, default=Path("starts.jsonl"))
    parser.add_argument("--resume", action="store_true", help="only rows not in --out")
    parser.add_argument("--summary", type=Path, help="print the table of a file")
    parser.add_argument("--today-only", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.summary:
        print(summary(read_rows(given.summary)))
        return
    if given.one:
        print(json.dumps(answer(Start(**json.loads(given.one)), given.budget)))
        return
    wanted = [start for name in given.jobs for start in starts_of(name)]
    if given.today_only:
        run_todays(wanted)
        return
    if given.resume:
        rows = read_rows(given.out)
        done = {Start(r["job"], r["batch"], r["factor"]).key for r in rows}
        wanted = [start for start in wanted if start.key not in done]
    evaluate(wanted, given.budget, given.label, given.processes, given.out)
    print(summary(read_rows(given.out)))


if __name__ == "__main__":
    main()
