"""A class of 0.1 %: what each way of feeding it does to gradient and result.

Logistic regression, 21 coordinates, B = 256. First the gradient's bias and variance at
four weights, over many batches drawn by the streams themselves (bias in units of a
uniform batch's noise); then training by Adam at the best of four rates, three seeds,
and the excess risk over the optimum.

    python benchmarks/feed_rare_class.py                # some ten minutes
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

import rightbatch as rb
from results import write_json
from rightbatch.data.order.neyman import StratumMeter
from rightbatch.data.order.weighted import Weighted

BATCH, WIDTH = 256, 21
RATES = (0.003, 0.01, 0.03, 0.1)


def data(length: int) -> tuple[Tensor, Tensor]:
    """Inputs with a constant, and labels of which 0.1 % are positive."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(length, WIDTH - 1, generator=generator, dtype=torch.float64)
    score = x[:, :5] @ torch.tensor([1.0, -0.8, 0.6, 0.4, -0.2], dtype=x.dtype)
    low, high = -20.0, 0.0  # the constant that gives 0.1 %
    for _ in range(60):
        middle = (low + high) / 2
        rate = float(torch.sigmoid(score + middle).mean())
        low, high = (middle, high) if rate < 1e-3 else (low, middle)
    y = torch.rand(length, generator=generator, dtype=x.dtype)
    y = (y < torch.sigmoid(score + low)).to(x.dtype)
    return torch.cat([x, torch.ones(length, 1, dtype=x.dtype)], 1), y


def risk(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """Mean loss over the data set."""
    return functional.binary_cross_entropy_with_logits(x @ weight, y)


def optimum(x: Tensor, y: Tensor) -> Tensor:
    """Newton's method from the prior."""
    weight = prior(y)
    for _ in range(25):
        p = torch.sigmoid(x @ weight)
        gradient = x.T @ (p - y) / len(y)
        hessian = (x * (p * (1 - p))[:, None]).T @ x / len(y)
        weight = weight - torch.linalg.solve(hessian, gradient)
    return weight


def prior(y: Tensor) -> Tensor:
    """All zero but for the constant, which gives the frequency."""
    weight = torch.zeros(WIDTH, dtype=torch.float64)
    weight[-1] = torch.logit(y.mean())
    return weight


def halfway(x: Tensor, y: Tensor, best: Tensor) -> Tensor:
    """Half of the way in risk, on the line from the prior to the optimum."""
    start = prior(y)
    goal = float(risk(x, y, start) + risk(x, y, best)) / 2
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        found = float(risk(x, y, start + middle * (best - start)))
        low, high = (middle, high) if found > goal else (low, middle)
    return start + low * (best - start)


def orders(y: Tensor) -> dict[str, Callable[[], Any]]:
    """What is compared, by name."""
    labels = y.numpy().astype(np.int8)
    share = y.mean()
    balance = torch.where(y > 0, 0.5 / share, 0.5 / (1 - share)).numpy()
    return {
        "uniform": lambda: "shuffled",
        "weighted loss": lambda: "shuffled",
        "WeightedRandomSampler": lambda: Weighted(balance, "weighted"),
        "its draws, weighted back": lambda: Weighted(balance),
        "strata k = 1": lambda: rb.data.Strata(labels, {1: 1}),
        "strata k = 8": lambda: rb.data.Strata(labels, {1: 8}),
        "strata k = 64": lambda: rb.data.Strata(labels, {1: 64}),
        "strata Neyman": lambda: rb.data.Strata(labels, "neyman", multiple=2),
    }


def batches(stream: rb.BatchStream) -> Iterator[Any]:
    """Endless micro-batches that are whole batches."""
    while True:
        for step in stream.steps():
            yield from step


def factor(name: str, y: Tensor, share: float) -> Tensor:
    """What a weighted loss multiplies each example's loss with."""
    if name != "weighted loss":
        return torch.ones_like(y)
    return torch.where(y > 0, 0.5 / share, 0.5 / (1 - share))


def variance(
    x: Tensor, y: Tensor, weight: Tensor, draws: int
) -> dict[str, dict[str, float]]:
    """Bias and variance of each way's gradient at fixed weights."""
    own = (torch.sigmoid(x @ weight) - y)[:, None] * x
    whole, share = own.mean(0), float(y.mean())
    stds = [float(own[y == c].var(0).sum()) ** 0.5 for c in (0, 1)]
    base, table = None, {}
    for name, make in orders(y).items():
        order = make()
        shown = ""
        if name == "strata Neyman":
            order.observe(stds)
            shown = f"  k = {order.counts_at(BATCH, None)[1]}"
        stream = rb.BatchStream((own, y), BATCH, order=order, seed=1)
        total, square = torch.zeros(WIDTH, dtype=x.dtype), 0.0
        squares = torch.zeros_like(total)
        source = batches(stream)
        for _ in range(draws):
            micro = next(source)
            g, labels = micro.data
            w = micro.weights.double() * factor(name, labels, share)
            found = (w[:, None] * g).mean(0)
            total += found
            squares += found.square()
            square += float(found.square().sum())
        mean = total / draws
        trace = square / draws - float(mean.square().sum())
        base = base or trace
        error = ((squares / draws - mean.square()).clamp(min=0) / draws).sqrt()
        error += 1e-6 * own.abs().mean(0)  # weights are rounded to float32
        z = float(((mean - whole) / error).abs().max())
        bias = float((mean - whole).norm()) / base**0.5
        print(
            f"  {name:<26} variance {trace / base:9.3g} x   max |z| {z:7.1f}   "
            f"bias {bias:8.2g}{shown}"
        )
        table[name] = {"variance": trace / base, "max_z": z, "bias": bias}
    return table


def trained(
    name: str, x: Tensor, y: Tensor, rate: float, steps: int, seed: int
) -> tuple[Tensor, int]:
    """Weights after Adam from the prior; k at the end where it is chosen."""
    order = orders(y)[name]()
    weight = prior(y).requires_grad_()
    optimizer = torch.optim.Adam([weight], lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    stream = rb.BatchStream((x, y), BATCH, order=order, seed=seed)
    meter = None
    if name == "strata Neyman":
        meter = StratumMeter([weight], order, overhead=math.inf)
    share = float(y.mean())
    source = batches(stream)
    for _ in range(steps):
        micro = next(source)
        inputs, labels = micro.data
        losses = functional.binary_cross_entropy_with_logits(
            inputs @ weight, labels, reduction="none"
        )
        if meter is not None:
            meter(losses, micro.groups)
        w = micro.weights.double() * factor(name, labels, share)
        optimizer.zero_grad()
        (w * losses).mean().backward()
        optimizer.step()
        schedule.step()
    chosen = order.counts_at(BATCH, None)[1] if meter is not None else 0
    return weight.detach(), int(chosen)


def training(
    x: Tensor, y: Tensor, best: Tensor, steps: int
) -> dict[str, dict[str, float]]:
    """Excess risk, calibration and ranking after training, at each way's best rate."""
    lowest, table = float(risk(x, y, best)), {}
    for name in orders(y):
        if name == "its draws, weighted back":
            continue
        found = []
        for rate in RATES:
            made = [trained(name, x, y, rate, steps, seed) for seed in range(3)]
            risks = [float(risk(x, y, w)) - lowest for w, _ in made]
            found.append((statistics.median(risks), rate, made[0]))
        excess, rate, (weight, chosen) = min(found, key=lambda f: f[0])
        over = float(torch.sigmoid(x @ weight).mean() / y.mean())
        more = f", k = {chosen} at the end" if chosen else ""
        print(
            f"  {name:<26} excess risk {excess:.2e} at rate {rate}, predicts "
            f"{over:.2f} x the frequency{more}",
            flush=True,
        )
        table[name] = {"excess_risk": excess, "rate": rate, "frequency_ratio": over}
    return table


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--length", type=int, default=1_000_000)
    parser.add_argument("--draws", type=int, default=20_000)
    parser.add_argument("--steps", type=int, default=600)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    x, y = data(chosen.length)
    best = optimum(x, y)
    print(f"{int(y.sum())} positives of {chosen.length}, B = {BATCH}")
    points = {
        "zero": torch.zeros(WIDTH, dtype=x.dtype),
        "prior": prior(y),
        "halfway": halfway(x, y, best),
        "optimum": best,
    }
    gradients = {}
    for name, weight in points.items():
        print(f"{name}: {chosen.draws} batches")
        gradients[name] = variance(x, y, weight, chosen.draws)
    print(f"trained: {chosen.steps} steps of Adam")
    trainings = training(x, y, best, chosen.steps)
    sizes = {"examples": chosen.length, "draws": chosen.draws, "steps": chosen.steps}
    write_json(
        "feed-rare-class", {**sizes, "gradient": gradients, "training": trainings}
    )


if __name__ == "__main__":
    main()
