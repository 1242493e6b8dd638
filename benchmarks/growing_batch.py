"""A growing batch instead of a decaying rate; a batch that follows the noise.

    python benchmarks/growing_batch.py decay --job digits
    python benchmarks/growing_batch.py follow --job stdlib_gpt

`decay` trains for the same number of examples with a decaying learning rate, and with
the batch growing in its place, and compares the held-out loss at the end over seeds.
`follow` compares the CPU time to the target: fixed batches, the plan's among them, with
the schedule that follows the noise measured while training. Every rate follows from
today's by the rule in force; nothing is tuned for one side.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import statistics
import time
from typing import Any

import torch

import rightbatch as rb
from results import write_json

EXAMPLES = {"digits": 80_000, "stdlib_gpt": 100_000}
GROWTH = 8  # largest batch over the first


def final_loss(job: rb.Job, seed: int, **how: Any) -> dict[str, float]:
    """One run for the same examples: held-out loss at its end, updates, CPU time."""
    endless = dataclasses.replace(job, seed=seed, target=None)
    run = rb.train(endless, examples=EXAMPLES[job.name], rule="auto", **how)
    assert run.last.metric is not None
    return {
        "loss": run.last.metric,
        "steps": run.last.steps,
        "seconds": run.last.process_time_s,
        "batch": run.last.batch_size,
    }


def decay(job: rb.Job, seeds: int) -> dict[str, Any]:
    """Decay, and what takes its place, interleaved seed by seed."""
    total, first = EXAMPLES[job.name], job.batch_size
    floor = 1 / 64
    rate = rb.schedules.Rate.cosine(total, floor=floor)
    most = GROWTH * first
    smith = rb.schedules.InsteadOfDecay(first, rate, most, form="smith")
    seesaw = rb.schedules.InsteadOfDecay(first, rate, most, form="seesaw")
    ways: dict[str, dict[str, Any]] = {
        "cosine decay": {"schedule": rb.schedules.Constant(first), "rate": rate},
        "smith": {"schedule": smith},
        "seesaw": {"schedule": seesaw},
        "annealing, rate kept": {"schedule": rb.schedules.Anneal(first, most, total)},
        "neither": {"schedule": rb.schedules.Constant(first)},
    }
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for seed in range(seeds):
        for name, how in ways.items():
            found[name].append(final_loss(job, seed, **how))
            print(f"  seed {seed} {name}: {found[name][-1]}", flush=True)
    usual, table = found["cosine decay"], {}
    print(f"{job.name}: {total:,} examples, first batch {first}, {seeds} seeds")
    print("                        final loss       sd  updates x   time x")
    for name, runs in found.items():
        losses = [r["loss"] for r in runs]
        ratios = {
            key: statistics.median(
                a[key] / b[key] for a, b in zip(runs, usual, strict=True)
            )
            for key in ("steps", "seconds")
        }
        spread = statistics.stdev(losses) if seeds > 1 else math.nan
        print(
            f"{name:<22}{statistics.mean(losses):>12.4f}{spread:>9.4f}"
            f"{ratios['steps']:>11.2f}{ratios['seconds']:>9.2f}",
            flush=True,
        )
        table[name] = {
            "loss": statistics.mean(losses),
            "loss_sd": spread,
            "updates": ratios["steps"],
            "time": ratios["seconds"],
        }
    return {"examples": total, "first_batch": first, "seeds": seeds, "ways": table}


def seconds_to_target(job: rb.Job, seed: int, **how: Any) -> tuple[float, Any]:
    """CPU seconds of training until the target; infinite if it was not met."""
    try:
        run = rb.train(dataclasses.replace(job, seed=seed), epochs=40, **how)
    except rb.JobError:
        return math.inf, None
    return (run.last.process_time_s if run.reached else math.inf), run


def follow(job: rb.Job, seeds: int, batches: list[int]) -> dict[str, Any]:
    """Fixed batches, the plan's, and the live schedule, interleaved seed by seed."""
    tuning = rb.tune(job, budget_s=60)
    plan = tuning.plan
    half = plan.half_batch
    print(f"plan: B = {plan.batch_size}, half batch {half}", flush=True)
    ways: dict[str, dict[str, Any]] = {
        f"fixed {b}": {"schedule": rb.schedules.Constant(b)} for b in batches
    }
    ways[f"plan {plan.batch_size}"] = {"plan": plan}
    ways["follow noise from plan"] = {"plan": plan, "schedule": "noise"}
    ways["follow noise from today"] = {
        "schedule": rb.schedules.FollowNoise(
            job.batch_size, half_batch=half, most=max(batches)
        )
    }
    ways["half the noise scale"] = {
        "schedule": rb.schedules.FollowNoise(
            job.batch_size, fraction=0.5, most=max(batches)
        )
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for seed in range(seeds):
        for name, how in ways.items():
            seconds, run = seconds_to_target(job, seed, **how)
            times[name].append(seconds)
            sizes = [] if run is None else sorted({r.batch_size for r in run.rows})
            print(f"  seed {seed} {name}: {seconds:.3f} s {sizes}", flush=True)
    medians = {name: statistics.median(t) for name, t in times.items()}
    best = min(v for name, v in medians.items() if name.startswith("fixed"))
    print(f"{job.name}: CPU seconds to the target, {seeds} seeds")
    for name, median in medians.items():
        print(f"{name:<28}{median:>9.3f} s{median / best:>8.2f} x best fixed")
    return {
        "seeds": seeds,
        "ways": {
            name: {"cpu_s": median, "over_best_fixed": median / best}
            for name, median in medians.items()
        },
    }


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["decay", "follow"])
    parser.add_argument("--job", default="digits")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--batches", default="16,32,64,128,256")
    given = parser.parse_args()
    torch.set_num_threads(1)
    job = rb.load_job(given.job)
    begun = time.monotonic()
    if given.what == "decay":
        result = decay(job, given.seeds)
    else:
        result = follow(job, given.seeds, [int(b) for b in given.batches.split(",")])
    result["wall_s"] = round(time.monotonic() - begun)
    write_json(f"growing-batch-{given.what}-{given.job}", result)


if __name__ == "__main__":
    main()
