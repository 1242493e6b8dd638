"""The best contrastive batch by V1, V2 and the cost of a step, against a stored grid.

The built-in job ``contrastive_digits`` is trained for a while at a batch, its rate
today's carried by the square root; there V1 and V2 are measured. With the step times of
the grid they say a batch, and what every other one costs; the grid says what is true:
time to the target at the best rate of each batch.

    python benchmarks/contrastive_batch.py
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from results import write_json
from rightbatch.core.errors import UnidentifiedError
from rightbatch.coupling.contrastive_batch import StepCost, optimal_contrastive_batch
from rightbatch.coupling.pairwise_noise import pair_noise

sys.path.insert(0, str(Path(__file__).parent / "truth"))
from grid import Trainer, Truth, constant
from jobs import JOBS

NAME = "contrastive_digits"
TODAYS = (16, 64, 256)  # today's batch, and four times off either way
SHARES = (0.1, 0.25, 0.5)  # of the grid's best time, trained before measuring
SIZES = ((8, 64),)  # (16, 128) says the same batches [measured]
SEEDS = (0, 1, 2)


def true_cost(truth: Truth, batch: float) -> float:
    """Time to the target at a batch over the best, log-log between the grid's."""
    known = {
        b: min(truth.seconds(cell) for cell in truth.cells if cell[0] == b)
        for b in sorted(truth.step_s)
    }
    reached = {b: s for b, s in known.items() if math.isfinite(s)}
    low = max((b for b in reached if b <= batch), default=None)
    high = min((b for b in reached if b >= batch), default=None)
    if low is None or high is None:
        return math.inf
    share = 0.0 if low == high else math.log(batch / low) / math.log(high / low)
    seconds = reached[low] ** (1 - share) * reached[high] ** share
    return seconds / min(reached.values())


def predicted(
    today: int, share: float, sizes: tuple[int, ...], seed: int, truth: Truth
) -> dict[str, Any]:
    """Train, measure, say a batch."""
    job = JOBS[NAME].make()
    usual = job.optimizer(job.make_model().parameters()).param_groups[0]["lr"]
    rate = usual * math.sqrt(today / job.batch_size)
    trainer = Trainer(job, today, seed, constant(rate))
    steps = share * truth.seconds(truth.best) / truth.time_of_step(today)
    for _ in range(round(steps)):
        trainer.step()
    order = torch.randperm(job.length, generator=torch.Generator().manual_seed(seed))
    batch = tuple(t[order] for t in job.data)
    cost = StepCost.fit(list(truth.step_s), list(truth.step_s.values()))
    row: dict[str, Any] = {
        "today": today,
        "share": share,
        "sizes": sizes,
        "seed": seed,
        "metric": trainer.evaluated(),
    }
    for name, optimizer in (("plain", None), ("adam", trainer.optimizer)):
        began = time.process_time()
        noise = pair_noise(
            trainer.model, job.loss, batch, sizes=sizes, optimizer=optimizer
        )
        best = optimal_contrastive_batch(noise, cost, most=job.length)
        row[name] = {
            "cpu_s": time.process_time() - began,
            "v1": noise.v1,
            "v2": noise.v2,
            "batch_size": best.batch_size,
            "true_cost": true_cost(truth, best.batch_size.value),
            "predicted": {b: best.relative(b) for b in truth.step_s},
        }
    return row


def main() -> None:
    """Every start, share, choice of sizes and seed; the table, and JSON."""
    torch.set_num_threads(1)
    truth = Truth.load(NAME)
    true = {b: true_cost(truth, b) for b in truth.step_s}
    print("truth", {b: round(cost, 2) for b, cost in true.items()})
    rows = []
    for sizes in SIZES:
        for today in TODAYS:
            for share in SHARES:
                these = []
                for seed in SEEDS:
                    try:
                        these.append(predicted(today, share, sizes, seed, truth))
                    except UnidentifiedError as error:
                        print(sizes, today, share, seed, error.what)
                rows += these
                for name in ("plain", "adam"):
                    batches = [r[name]["batch_size"].value for r in these]
                    costs = [r[name]["true_cost"] for r in these]
                    print(
                        f"{sizes} today {today:>4}, {share:4.0%} {name:<5} "
                        f"B {[round(b) for b in batches]} "
                        f"cost {[round(c, 2) for c in costs]}",
                        flush=True,
                    )
    summary = {
        f"{name} {sizes}": {
            "median": statistics.median(costs),
            "worst": max(costs),
            "within 1.25": sum(c <= 1.25 for c in costs),
            "of": len(costs),
        }
        for sizes in SIZES
        for name in ("plain", "adam")
        for costs in [[r[name]["true_cost"] for r in rows if r["sizes"] == sizes]]
    }
    for key, value in summary.items():
        print(key, value)
    write_json(
        "contrastive-batch",
        {"truth": true, "summary": summary, "rows": rows},
    )


if __name__ == "__main__":
    main()
