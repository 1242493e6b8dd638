"""The truth of a job: steps to its target at every batch and rate, by plain loops.

Nothing here trains with rightbatch; of it only the `Job` is used, as a bundle of model,
loss, data, optimizer and evaluate. Steps to the target do not depend on the machine's
load; the time of a step does, so it is measured apart, the batches taking turns, and
the time of a cell is steps times step time, on one thread.

    python benchmarks/truth/grid.py                  # all jobs, an hour
    python benchmarks/truth/grid.py --jobs digits    # half a minute
    python benchmarks/truth/grid.py --times          # only the step times again
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import rightbatch as rb
from jobs import JOBS, Case

FOLDER = Path(__file__).parent / "grids"
# Evaluations fall where those of rightbatch's own loop do, so that times compare.
EVALUATION_GROWTH, FIRST_EVALUATION = 1.04, 4
GIVE_UP = 3.0  # a cell is stopped at so many times the job's best so far
DIVERGED = 20.0  # times the first loss, after which a run is called diverged
SEEDS = 2
ROUNDS, ROUND_S = 24, 0.03  # of timing: rounds, and CPU seconds a batch in each


@dataclass(frozen=True)
class Run:
    """How one run ended: reached, given up, or diverged; and after how many steps."""

    steps: int
    end: str

    @property
    def reached(self) -> bool:
        """Whether the target was met."""
        return self.end == "reached"


class Trainer:
    """A model under plain training steps of one batch size.

    Args:
        job: Whose model, loss, data and optimizer are used.
        batch: Examples a step.
        seed: Of weights and order.
        change: Makes the optimizer's numbers those of the setting.
        piece: Examples of one forward pass; 0 for the whole batch.
    """

    def __init__(
        self,
        job: rb.Job,
        batch: int,
        seed: int,
        change: Callable[[torch.optim.Optimizer], None],
        piece: int = 0,
    ) -> None:
        torch.manual_seed(seed)
        made: Any = job.model
        self.model: nn.Module = made().train()
        self.optimizer = job.optimizer(self.model.parameters())
        change(self.optimizer)
        self.job, self.batch, self.piece = job, batch, min(piece or batch, batch)
        self.order = batches(job.length, batch, seed)

    def step(self) -> torch.Tensor:
        """One step; the loss of its batch, which nobody has to wait for."""
        index = next(self.order)
        total = torch.zeros(())
        self.optimizer.zero_grad()
        for part in index.split(self.piece):
            loss: Any = self.job.loss(self.model, tuple(t[part] for t in self.job.data))
            share = loss if len(part) == self.batch else loss * len(part) / self.batch
            share.backward()
            total += share.detach()
        self.optimizer.step()
        return total

    def evaluated(self) -> float:
        """The job's held-out value, in eval mode."""
        assert self.job.evaluate is not None
        self.model.eval()
        with torch.no_grad():
            value = float(self.job.evaluate(self.model))
        self.model.train()
        return value


def batches(length: int, size: int, seed: int) -> Iterator[torch.Tensor]:
    """Batches of indices from shuffled epochs, which follow without a gap."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.empty(0, dtype=torch.long)
    while True:
        while len(left) < size:
            left = torch.cat([left, torch.randperm(length, generator=generator)])
        yield left[:size]
        left = left[size:]


def constant(rate: float) -> Callable[[torch.optim.Optimizer], None]:
    """Sets every group's rate."""

    def change(optimizer: torch.optim.Optimizer) -> None:
        for group in optimizer.param_groups:
            group["lr"] = rate

    return change


def run_to_target(trainer: Trainer, most_steps: float, first: int) -> Run:
    """Train until the target is met, the loss diverges or the steps are used up.

    Args:
        trainer: Fresh; it is used up.
        most_steps: After which the run is given up.
        first: Examples at the first evaluation.
    """
    due, start, steps = first, math.nan, 0
    while True:
        loss = trainer.step()
        steps += 1
        if steps == 1:
            start = float(loss)
        examples = steps * trainer.batch
        if examples < due and steps < most_steps:
            continue
        due = math.ceil(max(due, examples) * EVALUATION_GROWTH)
        if not math.isfinite(float(loss)) or float(loss) > DIVERGED * start:
            return Run(steps, "diverged")
        if trainer.job.met(trainer.evaluated()):
            return Run(steps, "reached")
        if steps >= most_steps:
            return Run(steps, "given up")


def step_times(job: rb.Job, settings: Sequence[tuple[int, int]]) -> list[float]:
    """CPU seconds of a step for each (batch, piece).

    The lower quartile over rounds: others on the machine can only slow a step down.
    """
    trainers = [Trainer(job, b, 0, lambda _: None, piece) for b, piece in settings]
    found: list[list[float]] = [[] for _ in settings]
    for trainer in trainers:
        trainer.step(), trainer.step()
    for _ in range(ROUNDS):
        for trainer, times in zip(trainers, found, strict=True):
            start, steps = time.process_time(), 0
            while time.process_time() - start < ROUND_S:
                trainer.step()
                steps += 1
            times.append((time.process_time() - start) / steps)
    return [sorted(times)[ROUNDS // 4] for times in found]


def from_the_middle(values: Sequence[Any], middle: Any) -> list[Any]:
    """Nearest to the middle first, so that a good time to give up by comes early."""
    centre = min(
        range(len(values)), key=lambda i: abs(math.log(values[i]) - math.log(middle))
    )
    order = sorted(range(len(values)), key=lambda i: abs(i - centre))
    return [values[i] for i in order]


def run_grid(name: str, case: Case) -> dict[str, Any]:
    """Every batch at every rate, as the file keeps it."""
    job = case.make()
    piece = case.piece or 0
    usual = job.optimizer(job.make_model().parameters()).param_groups[0]["lr"]
    times = dict(
        zip(
            case.batches,
            step_times(job, [(b, piece) for b in case.batches]),
            strict=True,
        )
    )
    best, cpu = case.limit_s, 0.0
    cells: dict[int, dict[float, list[Run]]] = {}
    for batch in from_the_middle(case.batches, job.batch_size):
        cells[batch] = {}
        for rate in from_the_middle(case.rates, usual):
            runs: list[Run] = []
            for seed in range(SEEDS):
                most = min(GIVE_UP * best, case.limit_s) / times[batch]
                trainer = Trainer(job, batch, seed, constant(rate), piece)
                run = run_to_target(trainer, most, FIRST_EVALUATION * job.batch_size)
                runs.append(run)
                cpu += run.steps * times[batch]
                if not run.reached:
                    break
            cells[batch][rate] = runs
            best = min(best, median_steps(runs) * times[batch])
        print(line(name, batch, times[batch], cells[batch]), flush=True)
    return {
        "job": name,
        "target": job.target,
        "piece": case.piece,
        "first_evaluation": FIRST_EVALUATION * job.batch_size,
        "torch": torch.__version__,
        "cpu_s": round(cpu, 2),
        "step_s": {str(b): float(f"{times[b]:.4g}") for b in case.batches},
        "cells": {
            str(b): {
                f"{r:g}": [[run.steps, run.end] for run in cells[b][r]]
                for r in case.rates
            }
            for b in case.batches
        },
    }


def timed_again(name: str, case: Case) -> dict[str, Any]:
    """The stored grid with its step times measured anew."""
    found = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    times = step_times(case.make(), [(b, case.piece or 0) for b in case.batches])
    step_s = {
        str(b): float(f"{t:.4g}") for b, t in zip(case.batches, times, strict=True)
    }
    steps = {
        b: sum(run[0] for runs in rates.values() for run in runs)
        for b, rates in found["cells"].items()
    }
    cpu_s = round(sum(steps[b] * step_s[b] for b in steps), 2)
    return found | {"cpu_s": cpu_s, "step_s": step_s}


def median_steps(runs: Sequence[Run]) -> float:
    """Steps to the target; infinite where a seed failed."""
    if len(runs) < SEEDS or not all(run.reached for run in runs):
        return math.inf
    return statistics.median(run.steps for run in runs)


def line(
    name: str, batch: int, step_s: float, rates: Mapping[float, Sequence[Run]]
) -> str:
    """One batch of the grid, rates upwards: seconds, or how it ended."""
    words = []
    for rate in sorted(rates):
        seconds = median_steps(rates[rate]) * step_s
        end = "diverges" if rates[rate][-1].end == "diverged" else "-"
        words.append(f"{seconds:8.3f}" if math.isfinite(seconds) else f"{end:>8}")
    return f"{name:<12} B {batch:>4} {1e6 * step_s:>7.0f} us " + "".join(words)


@dataclass(frozen=True)
class Truth:
    """A stored grid.

    Attributes:
        step_s: CPU seconds of a step at every batch.
        cells: Runs of every (batch, rate).
        cpu_s: Of the whole grid.
        first_evaluation: In examples.
        piece: Examples of one forward pass, 0 for the whole batch.
    """

    step_s: dict[int, float]
    cells: dict[tuple[int, float], tuple[Run, ...]]
    cpu_s: float
    first_evaluation: int
    piece: int

    @classmethod
    def load(cls, name: str) -> Truth:
        """Read ``grids/NAME.json``."""
        found = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
        return cls(
            {int(b): t for b, t in found["step_s"].items()},
            {
                (int(b), float(r)): tuple(Run(steps, end) for steps, end in runs)
                for b, rates in found["cells"].items()
                for r, runs in rates.items()
            },
            found["cpu_s"],
            found["first_evaluation"],
            found["piece"] or 0,
        )

    def seconds(self, cell: tuple[int, float]) -> float:
        """Time to the target at a (batch, rate); infinite where a seed failed."""
        return median_steps(self.cells[cell]) * self.step_s[cell[0]]

    def paid(self, cell: tuple[int, float]) -> float:
        """CPU seconds of the cell's first run, up to where it was given up."""
        return self.cells[cell][0].steps * self.step_s[cell[0]]

    @property
    def best(self) -> tuple[int, float]:
        """The (batch, rate) soonest at the target."""
        return min(self.cells, key=self.seconds)

    def best_rate(self, batch: int) -> float:
        """The best rate of a batch; that of the next batch reached where none does."""
        rates = [
            (self.seconds(cell), cell[1]) for cell in self.cells if cell[0] == batch
        ]
        seconds, rate = min(rates)
        if math.isfinite(seconds):
            return rate
        reached = {b for b, r in self.cells if math.isfinite(self.seconds((b, r)))}
        nearest = min(reached, key=lambda b: abs(math.log(b / batch)))
        return self.best_rate(nearest)

    def time_of_step(self, batch: int) -> float:
        """CPU seconds of a step, log-log between the grid's batches and beyond them."""
        known = sorted(self.step_s)
        above = next((i for i, b in enumerate(known) if b >= batch), len(known) - 1)
        low, high = known[max(above, 1) - 1], known[max(above, 1)]
        share = math.log(batch / low) / math.log(high / low)
        return self.step_s[low] ** (1 - share) * self.step_s[high] ** share


def main() -> None:
    """Parse and run; every job is saved as it finishes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", nargs="+", default=list(JOBS), choices=list(JOBS))
    parser.add_argument("--missing", action="store_true", help="only those not stored")
    parser.add_argument("--times", action="store_true", help="step times only")
    given = parser.parse_args()
    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    for name in given.jobs:
        path = FOLDER / f"{name}.json"
        if given.missing and path.exists():
            continue
        found = (timed_again if given.times else run_grid)(name, JOBS[name])
        path.write_text(json.dumps(found) + "\n", encoding="utf-8")
        truth = Truth.load(name)
        batch, rate = truth.best
        print(
            f"{name}: best B = {batch}, rate {rate:g}, "
            f"{truth.seconds(truth.best):.3f} s; grid {truth.cpu_s:.0f} CPU s",
            flush=True,
        )


if __name__ == "__main__":
    main()
