"""Why following the noise live costs what it costs: one suspect at a time.

Runs go to a job's target in the library's own loop, on two clocks: steps times the
grid's step time, on which measuring is free, and CPU seconds, on which it is not.

    python benchmarks/truth/follow.py gain --seeds 1    # what any schedule can gain
    python benchmarks/truth/follow.py run --out follow.jsonl    # goes on where it ended
    python benchmarks/truth/follow.py summary --out follow.jsonl
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import rightbatch as rb
from grid import EVALUATION_GROWTH, Truth
from jobs import JOBS
from law import fitted
from rightbatch.core.errors import JobError
from rightbatch.schedules import Constant, FollowNoise, Schedule
from rightbatch.training import controller as controller_module
from rightbatch.training import run_state as run_state_module
from rightbatch.training.run_state import RunState
from rightbatch.training.settings import Settings

sys.path.insert(0, str(Path(__file__).parents[1]))
from results import write_json

CAP = 4.0  # a run is given up at so many times the grid's best
USUAL = ("digits", "photo", "stdlib_gpt")
SEGMENTS = 8  # of a run, whose noise is told apart


@dataclass(frozen=True)
class Bench:
    """A job with its grid: what is known of it beforehand.

    Attributes:
        job: As the grid has it; today's rate is the grid's best of today's batch.
        truth: The grid.
        power: Of the batch, by which the grid's best rates go.
    """

    job: rb.Job
    truth: Truth
    power: float

    @classmethod
    def load(cls, name: str) -> Bench:
        """By name."""
        truth, job = Truth.load(name), JOBS[name].make()
        seconds = {b: truth.seconds((b, truth.best_rate(b))) for b in truth.step_s}
        best = min(seconds.values())
        near = [b for b, s in seconds.items() if s < 2 * best]
        x = np.log(near)
        power = np.polyfit(x, np.log([truth.best_rate(b) for b in near]), 1)[0]
        return cls(job, truth, float(power))

    def planned_rates(self, critical: float) -> dict[str, Any]:
        """Settings as a plan has them: the best batch's best rate, the rule from it."""
        batch, rate = self.truth.best
        settings = {"rule": "auto", "noise_scale": critical}
        run = RunState.start(
            self.job, Settings(schedule=Constant(batch), end=math.inf, **settings)
        )
        run.close()
        assert run.lr is not None
        return settings | {"lr_factor": rate / run.lr}

    @property
    def half_batch(self) -> float:
        """t0 / t1 of the grid's step times, by least squares of relative errors."""
        batches = np.array(sorted(self.truth.step_s), float)
        times = np.array([self.truth.step_s[int(b)] for b in batches])
        design = np.stack([1 / times, batches / times], 1)
        t0, t1 = np.linalg.lstsq(design, np.ones(len(batches)), rcond=None)[0]
        return float(t0 / t1)

    def grid_rates(self) -> dict[str, Any]:
        """Settings by which the rate is the grid's best at every batch."""
        batch, rate = self.truth.best
        own = self.job.make_optimizer(self.job.make_model()).param_groups[0]["lr"]
        wanted = rate * (self.job.batch_size / batch) ** self.power
        return {
            "rule": "exponent",
            "exponent": self.power,
            "lr_factor": wanted / own,
        }


@dataclass(frozen=True)
class Way:
    """One way to train.

    Attributes:
        schedule: Of the batch.
        settings: Rule, rate and so on.
        controller: Constants of the controller that are others.
        overhead: Share that measuring may take, and measured steps at once.
        noise_now: Whether the rule of the rate takes the noise of the moment.
    """

    schedule: Schedule
    settings: dict[str, Any] = field(default_factory=dict)
    controller: dict[str, Any] = field(default_factory=dict)
    overhead: tuple[float, int] = (0.05, 40)
    noise_now: bool = False


@contextmanager
def patched(way: Way) -> Iterator[None]:
    """The controller's and the monitor's constants as a way has them."""
    wanted = [(controller_module, n, v) for n, v in way.controller.items()]
    names = zip(("OVERHEAD", "LOAN"), way.overhead, strict=True)
    wanted += [(run_state_module, n, v) for n, v in names]
    kept = [(m, n, getattr(m, n)) for m, n, _ in wanted]
    for module, name, value in wanted:
        setattr(module, name, value)
    try:
        yield
    finally:
        for module, name, value in kept:
            setattr(module, name, value)


def run_way(bench: Bench, way: Way, seed: int) -> tuple[dict[str, Any], RunState]:
    """One run to the target: seconds on both clocks, infinite where it is not met."""
    truth = bench.truth
    job = dataclasses.replace(bench.job, seed=seed)
    result = {"law_s": math.inf, "cpu_s": math.inf, "batches": []}
    cap = CAP * truth.seconds(truth.best)
    settings = Settings(schedule=way.schedule, end=math.inf, **way.settings)
    with patched(way):
        run = RunState.start(job, settings)
        if run.controller is not None and way.noise_now:
            run.controller._noise_unknown = True
        due, law_s, cpu_s, batches = truth.first_evaluation, 0.0, 0.0, []
        try:
            while law_s < cap:
                before = run.batch_size
                began = time.process_time()
                run.step()
                cpu_s += time.process_time() - began
                law_s += truth.time_of_step(before)
                batches.append(before)
                if run.examples < due:
                    continue
                due = math.ceil(max(due, run.examples) * EVALUATION_GROWTH)
                metric = run.evaluated()
                if metric is not None and job.met(metric):
                    result |= {"law_s": law_s, "cpu_s": cpu_s}
                    break
        except JobError:
            pass
        finally:
            run.close()
    runs = [(b, len(list(g))) for b, g in itertools.groupby(batches)]
    return result | {"batches": runs}, run


def noise_along(bench: Bench, seed: int) -> list[tuple[float, float]]:
    """Noise scale in segments of a run at the grid's best, with their share of steps.

    Shares are of the progress made, steps of a noiseless run: 1 / (1 + N / B) each.
    """
    batch = bench.truth.best[0]
    endless = FollowNoise(batch, fraction=1.0, least=batch, most=batch)
    way = Way(endless, bench.grid_rates(), overhead=(math.inf, 0))
    run = run_way(bench, way, seed)[1]
    assert run.monitor is not None
    blocks = run.monitor.history.blocks
    edges = np.linspace(0, len(blocks), SEGMENTS + 1).astype(int)
    found = []
    for first, last in itertools.pairwise(edges):
        signal = sum(float(b.signal.sum()) for b in blocks[first:last])
        noise = sum(float(b.noise.sum()) for b in blocks[first:last])
        scale = noise / signal if signal > 0 else math.inf
        found.append(scale)
    largest = max(n for n in found if math.isfinite(n))
    found = [min(max(n, 1.0), largest) for n in found]
    progress = np.array([1 / (1 + n / batch) for n in found])
    return list(zip(found, progress / progress.sum(), strict=True))


def possible_gain(
    noise: list[tuple[float, float]], half: float, calibration: float = 1.0
) -> float:
    """Share of the time that the best batch at every moment saves over the best fixed.

    Progress ds costs (1 + N/B) (t0 + t1 B) seconds. With h = t0/t1 the best fixed batch
    takes (sqrt(h) + sqrt(mean N))^2, the best at every moment the mean of
    (sqrt(h) + sqrt(N))^2: less by 2 sqrt(h) (sqrt(mean N) - mean sqrt N). [derived]
    """
    mean = sum(w * calibration * n for n, w in noise)
    root = sum(w * math.sqrt(calibration * n) for n, w in noise)
    fixed = (math.sqrt(half) + math.sqrt(mean)) ** 2
    return 2 * math.sqrt(half) * (math.sqrt(mean) - root) / fixed


def ways_of(bench: Bench, noise: float, critical: float) -> dict[str, Way]:
    """Fixed batches, following as one would have it, and one thing at a time mended.

    Args:
        bench: The job.
        noise: Its mean noise scale along a run, for the exact calibration.
        critical: Its critical batch by the law of its grid.
    """
    best, half, today = bench.truth.best[0], bench.half_batch, bench.job.batch_size
    rates = bench.planned_rates(critical)

    def follow(first: int = best, **more: Any) -> FollowNoise:
        return FollowNoise(first, half_batch=half, most=8 * best, **more)

    exact = best**2 / (half * noise)
    return {
        "best fixed": Way(Constant(best), rates),
        "best fixed, rule's rate": Way(Constant(best)),
        "today's fixed": Way(Constant(today)),
        "rule's rates, from today's": Way(follow(today)),
        "rule's rates, from the best": Way(follow()),
        "planned rates": Way(follow(), rates),
        "rates by the noise now": Way(follow(), rates, noise_now=True),
        "a look in every step": Way(follow(), rates, {"LOOK_EVERY": 1}),
        "any factor at once": Way(follow(), rates, {"FACTOR": math.inf}),
        "exact calibration": Way(follow(calibration=exact), rates),
        "never below the best": Way(follow(least=best), rates),
        "2 %, 4 at once": Way(follow(), rates, overhead=(0.02, 4)),
        "mended": Way(follow(least=best), rates, overhead=(0.02, 4)),
        "mended, calibrated": Way(
            follow(least=best, calibration=exact), rates, overhead=(0.02, 4)
        ),
    }


def compare(bench: Bench, ways: dict[str, Way], out: Path, seeds: int) -> None:
    """All ways, seed by seed in turns; rows that ``out`` has are not run again."""
    rows = read_rows(out)
    done = {(r["job"], r["way"], r["seed"]) for r in rows}
    for seed, (name, way) in itertools.product(range(100, 100 + seeds), ways.items()):
        if (bench.job.name, name, seed) in done:
            continue
        row = {"job": bench.job.name, "way": name, "seed": seed}
        row |= run_way(bench, way, seed)[0]
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def read_rows(out: Path) -> list[dict[str, Any]]:
    """The rows of a file that may not be there."""
    if not out.exists():
        return []
    return [json.loads(text) for text in out.read_text(encoding="utf-8").splitlines()]


def table_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over seeds, and their ratios to the best fixed batch's."""
    table: dict[str, Any] = {}
    for job in dict.fromkeys(r["job"] for r in rows):
        print(
            f"{job}: seconds by steps, over the best fixed; CPU seconds over the same"
        )
        base: dict[str, float] = {}
        for name in dict.fromkeys(r["way"] for r in rows if r["job"] == job):
            runs = [r for r in rows if (r["job"], r["way"]) == (job, name)]
            row: dict[str, Any] = {"seeds": len(runs)}
            for clock in ("law_s", "cpu_s"):
                row[clock] = statistics.median(r[clock] for r in runs)
                base.setdefault(clock, row[clock])
                row[f"{clock}_over_best_fixed"] = row[clock] / base[clock]
            row["first_run"] = runs[0]["batches"]
            table.setdefault(job, {})[name] = row
            print(
                f"  {name:<28}{len(runs):>3}{row['law_s']:>9.3f}"
                f"{row['law_s_over_best_fixed']:>7.2f}{row['cpu_s']:>9.3f}"
                f"{row['cpu_s_over_best_fixed']:>7.2f}  "
                + " ".join(f"{n}x{b}" for b, n in runs[0]["batches"][:6])
            )
    return table


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["gain", "run", "summary"])
    parser.add_argument("--jobs", nargs="+", default=list(USUAL), choices=list(JOBS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--ways", nargs="+", help="names of some; default: all")
    parser.add_argument("--out", type=Path, default=Path("follow.jsonl"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.what == "summary":
        write_json(f"truth-{given.out.stem}", table_of(read_rows(given.out)))
        return
    gains: dict[str, Any] = {}
    for name in given.jobs:
        bench = Bench.load(name)
        seeds = range(given.seeds if given.what == "gain" else 1)
        along = [noise_along(bench, seed) for seed in seeds]
        noise = statistics.mean(sum(w * n for n, w in one) for one in along)
        if given.what == "run":
            critical = fitted(name).critical_batch.value
            ways = ways_of(bench, noise, critical)
            kept = given.ways or list(ways)
            compare(bench, {n: ways[n] for n in kept}, given.out, given.seeds)
            continue
        gains[name] = {
            "half_batch": bench.half_batch,
            "mean_noise": noise,
            "noise": [[n for n, _ in one] for one in along],
            "gain": statistics.mean(possible_gain(a, bench.half_batch) for a in along),
        }
        print(f"{name:<12} at most {gains[name]['gain']:.1%} to gain", flush=True)
    if given.what == "gain":
        write_json("truth-follow-gain", gains)


if __name__ == "__main__":
    main()
