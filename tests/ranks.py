"""Run under torchrun by test_rank_gradients.py: ranks against direct computation."""

from __future__ import annotations

import itertools
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import rightbatch as rb
from reference import noise_by_pairs
from rightbatch.noise import guard
from rightbatch.noise.rank_gradients import RankGradients
from rightbatch.noise.statistics.optimizer_metric import OptimizerMetrics

BATCH, STEPS = 6, 5


def make_model() -> nn.Sequential:
    """The same on every rank."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 3))


def batch_of(step: int, rank: int) -> tuple[Tensor, Tensor]:
    """Every rank's own examples."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    x, y = (torch.randn(BATCH, n, generator=generator) for n in (5, 3))
    return x, y


def truth(model: nn.Module, world: int) -> tuple[float, float]:
    """Mean over the measured steps, each rank's gradient computed directly."""
    found = []
    for step in range(STEPS):
        parts = []
        for rank in range(world):
            x, y = batch_of(step, rank)
            loss = (model(x) - y).square().mean() / world
            grads = torch.autograd.grad(loss, list(model.parameters()))
            parts.append(torch.cat([g.flatten() for g in grads]).double())
        found.append(noise_by_pairs(parts, [BATCH] * world))
    signals, noises = zip(*found, strict=True)
    return sum(signals) / STEPS, sum(noises) / STEPS


def wrapped(kind: str) -> Any:
    """The model as DDP or FSDP2 has it."""
    model = make_model()
    if kind.startswith("ddp"):
        return DistributedDataParallel(model)
    from torch.distributed.fsdp import fully_shard

    fully_shard(model[0])
    fully_shard(model[2])
    fully_shard(model)
    return model


def break_ours(kind: str) -> None:
    """On the last rank something of ours fails, in the third step."""
    owner, name = {
        "ddp, broken exchange": (RankGradients, "_look_before"),
        "ddp, broken pass": (rb.NoiseMonitor, "_begin_step"),
        "fsdp, broken exchange": (RankGradients, "_add"),
        "ddp, broken metric": (OptimizerMetrics, "_observe"),
    }[kind]
    whole, calls = getattr(owner, name), itertools.count()

    def broken(*args: Any) -> Any:
        if next(calls) >= 2:
            raise KeyError("broken on purpose")
        return whole(*args)

    setattr(owner, name, broken)


def main(kind: str, out: Path) -> None:
    """Watch a few steps; rank 0 writes what it read beside the truth."""
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    model = wrapped(kind)
    broken = "broken" in kind
    guard.strict = not broken
    if broken and rank == world - 1:
        break_ours(kind)
    if kind in ("ddp, adam", "ddp, broken metric"):
        optimizer: Any = torch.optim.Adam(model.parameters(), lr=0.0)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    # Adam's metrics are measured after the first few steps.
    overhead = 0.02 if kind == "ddp, budget" else math.inf
    monitor = rb.NoiseMonitor(model, optimizer, overhead)
    more = {"ddp, budget": 60, "ddp, adam": 2 * STEPS, "ddp, broken metric": 15}
    steps = range(more.get(kind, STEPS))
    measured = []
    for step in steps:
        x, y = batch_of(step % STEPS, rank)
        optimizer.zero_grad()
        if kind == "ddp, accumulated":
            with model.no_sync():
                ((model(x[:3]) - y[:3]).square().mean() / 2).backward()
            ((model(x[3:]) - y[3:]).square().mean() / 2).backward()
        elif kind == "ddp, synchronised twice":
            for half in (slice(0, 3), slice(3, 6)):
                ((model(x[half]) - y[half]).square().mean() / 2).backward()
        else:
            (model(x) - y).square().mean().backward()
        optimizer.step()
        measured.append(monitor.counts.measured)
    found = monitor.read(window=10**6)
    signal, noise = truth(make_model(), world)
    everyone: list[Any] = [None] * world
    dist.all_gather_object(everyone, (found.noise_scale.value, measured, found.problem))
    if rank == 0:
        report = {
            "signal": found.grad_norm_sq.value,
            "noise": found.trace.value,
            "true signal": signal,
            "true noise": noise,
            "source": found.source,
            "steps": found.steps,
            "batch": found.batch_size,
            "layers": list(found.by_layer),
            "metrics": sorted(found.metrics),
            "everyone": everyone,
            "problem": found.problem,
            "examples": found.examples,
        }
        out.write_text(json.dumps(report))
    dist.barrier()
    # gloo's threads sometimes end the interpreter with SIGABRT on its way out.
    os._exit(0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], Path(sys.argv[2]))
