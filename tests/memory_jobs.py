"""Small jobs whose memory is known, for the tests of `rightbatch.memory`."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import rightbatch as rb
from rightbatch.memory.envelope import Envelope
from rightbatch.memory.peak import allocator_peak
from rightbatch.memory.step import step_of
from rightbatch.memory.step_law import trace_law
from rightbatch.memory.trial import Trial, try_step

CPU, MIB = torch.device("cpu"), 2**20
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


class Mlp(nn.Module):
    """Tied weights, a buffer, dropout, and a block that can be checkpointed."""

    def __init__(self, saved: bool = True) -> None:
        super().__init__()
        self.first = nn.Linear(40, 64)
        self.block = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64))
        self.again = nn.Linear(64, 64)
        self.again.weight = self.block[0].weight  # pyrefly: ignore
        self.last = nn.Linear(64, 5)
        self.norm = nn.LayerNorm(64)
        self.register_buffer("count", torch.zeros(3))
        self.saved = saved

    def forward(self, x: Tensor) -> Tensor:
        y = F.dropout(torch.relu(self.first(x)), 0.1)
        if self.saved:
            y = self.block(y)
        else:
            y = checkpoint(self.block, y, use_reentrant=False)
        return self.last(self.norm(self.again(y)))


class Tagger(nn.Module):
    """One attention over 12 tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(50, 32)
        self.qkv = nn.Linear(32, 96)
        self.head = nn.Linear(32, 50)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (4, 8)).transpose(1, 2)
            for part in self.qkv(self.tokens(x)).chunk(3, -1)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.head(y.transpose(1, 2).flatten(2))


class Clipping(torch.optim.AdamW):
    """Clips before it steps, as many loops do."""

    def step(self, closure: Any = None) -> Any:
        torch.nn.utils.clip_grad_norm_(self.param_groups[0]["params"], 1.0)
        return super().step(closure)


def classify(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]).flatten(0, -2), batch[1].flatten())


def adamw(params: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=1e-3)


def wide() -> nn.Module:
    """Memory that grows by 16 KiB an example."""
    return nn.Sequential(nn.Linear(40, 4096), nn.Linear(4096, 5))


def job_of(kind: str = "mlp", count: int = 4096, **changes: Any) -> rb.Job:
    data: tuple[Tensor, ...] = (
        torch.zeros(1, 40).expand(count, -1),
        torch.zeros(count, dtype=torch.long),
    )
    if kind == "tagger":
        data = tuple(
            torch.zeros(1, 12, dtype=torch.long).expand(count, -1) for _ in "xy"
        )
    job = rb.Job(
        model=Tagger if kind == "tagger" else Mlp,
        loss=classify,
        data=data,
        optimizer=adamw,
        batch_size=16,
    )
    return dataclasses.replace(job, **changes)


def real_peak(job: rb.Job, size: int, accumulation: int = 1) -> int:
    """By torch's own allocator events of a real step, the state already there."""
    step = step_of(job, accumulation)
    model = job.make_model()
    optimizer = job.make_optimizer(model)

    def run(size: int) -> None:
        batches = (step.batch(size) for _ in range(accumulation))
        step.run(model, optimizer, batches, size)

    run(2)
    return allocator_peak(model, optimizer, lambda: run(size))


def law_of(job: rb.Job, accumulation: int = 1) -> Envelope:
    return trace_law(step_of(job, accumulation), CPU, CPU, 2**33)


def trial(job: rb.Job, size: int, **more: Any) -> Trial:
    return try_step(step_of(job), size, CPU, **more)
