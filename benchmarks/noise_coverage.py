"""How often the intervals of `rb.noise_scale` hold the truth: nominal 95 %.

Four kinds of residuals at fixed weights; the truth is every example by itself. Draws
stop, as for any user, where the interval is within the precision asked for.

    python benchmarks/noise_coverage.py --runs 500
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rightbatch as rb
from results import write_json

EXAMPLES, FEATURES = 4096, 8


def normal(count: int, generator: torch.Generator) -> Tensor:
    """Symmetric, with light tails."""
    return torch.randn(count, generator=generator)


def exponential(count: int, generator: torch.Generator) -> Tensor:
    """Skewed."""
    return -torch.log1p(-torch.rand(count, generator=generator)) - 1


def lognormal(count: int, generator: torch.Generator) -> Tensor:
    """Skewed, with a heavy tail."""
    return torch.exp(torch.randn(count, generator=generator)) - math.exp(0.5)


def regression(residuals: Callable[[int, torch.Generator], Tensor]) -> rb.Job:
    """A line through points, at weights that are off by a third of a deviation."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(EXAMPLES, FEATURES, generator=generator)
    y = 0.3 * x.sum(1) + residuals(EXAMPLES, generator)
    return job(x, y, lambda model, batch: F.mse_loss(model(batch[0])[:, 0], batch[1]))


def rare_class() -> rb.Job:
    """One example in ten is of the class to be told."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(EXAMPLES, FEATURES, generator=generator)
    y = (x.sum(1) + 3 * torch.randn(EXAMPLES, generator=generator) > 5).float()
    return job(
        x,
        y,
        lambda model, batch: F.binary_cross_entropy_with_logits(
            model(batch[0])[:, 0], batch[1]
        ),
    )


def job(x: Tensor, y: Tensor, loss: Callable[[nn.Module, Any], Tensor]) -> rb.Job:
    """A linear model that begins at zero."""

    def model() -> nn.Module:
        linear = nn.Linear(FEATURES, 1)
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
        return linear

    return rb.Job(
        model=model,
        loss=loss,
        data=(x, y),
        optimizer=lambda params: torch.optim.SGD(params, lr=0.1),
        batch_size=32,
    )


KINDS: dict[str, Callable[[], rb.Job]] = {
    "normal residuals": lambda: regression(normal),
    "exponential residuals": lambda: regression(exponential),
    "lognormal residuals": lambda: regression(lognormal),
    "a rare class": rare_class,
}


def held(name: str, runs: int, precision: float) -> dict[str, float]:
    """Shares of the draws whose interval holds the truth, or lies on a side of it."""
    made = KINDS[name]()
    truth = rb.noise_scale(made, exact=True, micro_batch=256).noise_scale.value
    below = above = 0
    groups: list[int] = []
    for seed in range(runs):
        noise = rb.noise_scale(made, seed=seed, precision=precision)
        below += noise.noise_scale.high < truth
        above += noise.noise_scale.low > truth
        groups.append(noise.steps)
        if seed % 50 == 49:
            done = seed + 1
            print(
                f"  {name}: {done} draws, {1 - (below + above) / done:.3f}", flush=True
            )
    return {
        "truth": truth,
        "draws": runs,
        "held": 1 - (below + above) / runs,
        "interval below the truth": below / runs,
        "interval above the truth": above / runs,
        "median groups": statistics.median(groups),
    }


def main() -> None:
    """Parse, run, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=500, help="draws of each kind")
    parser.add_argument("--precision", type=float, default=0.2)
    given = parser.parse_args()
    rows = {name: held(name, given.runs, given.precision) for name in KINDS}
    print("| kind | truth | draws | held | below | above | groups of 8 |")
    print("| --- |" + " ---: |" * 6)
    for name, row in rows.items():
        print(
            f"| {name} | {row['truth']:.1f} | {row['draws']} | {row['held']:.1%} "
            f"| {row['interval below the truth']:.1%} "
            f"| {row['interval above the truth']:.1%} | {row['median groups']:.0f} |"
        )
    every = statistics.mean(row["held"] for row in rows.values())
    print(f"all: {every:.1%} of {given.runs * len(rows)}")
    write_json("noise-coverage", {"all": every, "kinds": rows})


if __name__ == "__main__":
    main()
