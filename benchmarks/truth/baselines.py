"""Random search and TPE at the cost of `tune`, replayed on the stored grids.

Each picks cells of the grid and pays for them what they cost there, up to three times
its own best so far, until it has spent the CPU seconds that `tune` spent on the job.
A cell that the grid gave up costs what it cost the grid, which favours the baselines;
so does that they choose among rates known to hold the best.

    python benchmarks/truth/baselines.py starts.jsonl

Optuna's TPE is left out, with a word, where optuna is not installed.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import math
import random
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grid import GIVE_UP, Truth
from starts import quantile, read_rows

REPEATS = 30
Cell = tuple[int, float]


def search(
    truth: Truth,
    budget_s: float,
    ask: Callable[[], Cell],
    tell: Callable[[float, float], None],
) -> float:
    """The best found over the grid's best; infinite where no cell was finished.

    Args:
        truth: The grid.
        budget_s: CPU seconds to spend.
        ask: The next cell.
        tell: Hears its seconds, infinite where it was given up, and what was paid.
    """
    best, spent = math.inf, 0.0
    for _ in truth.cells:
        cell = ask()
        seconds, paid = truth.seconds(cell), truth.paid(cell)
        if seconds > GIVE_UP * best:
            seconds, paid = math.inf, min(paid, GIVE_UP * best)
        spent += paid
        if spent > budget_s:
            break
        best = min(best, seconds)
        tell(seconds, paid)
    return best / truth.seconds(truth.best)


def random_search(truth: Truth, budget_s: float, seed: int) -> float:
    """Cells in a random order."""
    order = random.Random(seed).sample(list(truth.cells), len(truth.cells))
    return search(truth, budget_s, iter(order).__next__, lambda seconds, paid: None)


def tpe(optuna: Any, truth: Truth, budget_s: float, seed: int) -> float:
    """Optuna's TPE over the indices of batch and rate; a cell may come twice."""
    batches = sorted({batch for batch, _ in truth.cells})
    rates = sorted({rate for _, rate in truth.cells})
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    trials: list[Any] = []

    def ask() -> Cell:
        trials.append(study.ask())
        batch = batches[trials[-1].suggest_int("batch", 0, len(batches) - 1)]
        return batch, rates[trials[-1].suggest_int("rate", 0, len(rates) - 1)]

    def tell(seconds: float, paid: float) -> None:
        # One given up is worse than all it was compared with, by how much nobody knows.
        worth = seconds if math.isfinite(seconds) else GIVE_UP * paid
        study.tell(trials[-1], math.log(worth))

    return search(truth, budget_s, ask, tell)


def main() -> None:
    """Print the best found over the grid's best, by job and for all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", type=Path, help="of starts.py")
    given = parser.parse_args()
    searches: dict[str, Callable[[Truth, float, int], float]] = {
        "random": random_search
    }
    try:
        optuna: Any = importlib.import_module("optuna")
    except ImportError:
        print("without TPE: optuna is not installed")
    else:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        searches["TPE"] = functools.partial(tpe, optuna)
    costs: dict[str, list[float]] = {}
    for row in read_rows(given.rows):
        if "tune_cpu_s" in row:
            costs.setdefault(row["job"], []).append(row["tune_cpu_s"])
    print("| job | CPU s |" + "".join(f" {s}: median | p90 |" for s in searches))
    print("| --- | ---: |" + " ---: | ---: |" * len(searches))
    pooled: dict[str, list[float]] = {name: [] for name in searches}
    for job, spent in costs.items():
        truth, budget_s = Truth.load(job), statistics.median(spent)
        line = f"| {job} | {budget_s:.1f} |"
        for name, run in searches.items():
            found = [run(truth, budget_s, seed) for seed in range(REPEATS)]
            pooled[name] += found
            line += f" {quantile(found, 0.5):.2f} | {quantile(found, 0.9):.2f} |"
        print(line, flush=True)
    print(
        "| all | |"
        + "".join(
            f" {quantile(found, 0.5):.2f} | {quantile(found, 0.9):.2f} |"
            for found in pooled.values()
        )
    )


if __name__ == "__main__":
    main()
