"""Run under torchrun by test_accumulator_ranks.py: gradients and survival on ranks."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import rightbatch as rb
from reference import noise_by_pairs, whole_gradient
from rightbatch.training.ranks import leave

VOCABULARY, WIDTH, LENGTH = 11, 8, 6
CASES = {  # examples of every rank, and whether targets are masked
    "even": ([8, 8, 8, 8], False),
    "ragged": ([7, 5, 6, 8], False),
    "masked": ([8, 8, 8, 8], True),
    "ragged, masked": ([7, 5, 6, 8], True),
    "short": ([3, 1, 2, 1], True),
}


class Tagger(nn.Module):
    """Small enough to differentiate at once, with every kind of parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, x: Tensor) -> Tensor:
        y = self.embedding(x)
        for block in self.blocks:
            y = y + F.gelu(block(y))
        return self.head(self.norm(y))


def make_model() -> Tagger:
    """The same on every rank."""
    torch.manual_seed(0)
    return Tagger()


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Sum over the targets that are not masked, and their count."""
    x, y = batch
    logits = model(x).flatten(0, 1)
    total = F.cross_entropy(logits, y.flatten(), ignore_index=-1, reduction="sum")
    return total, (y >= 0).sum()


def batch_of(rank: int, case: str, step: int = 0) -> tuple[Tensor, Tensor]:
    """Every rank's own examples."""
    sizes, masked = CASES[case]
    generator = torch.Generator().manual_seed(100 * step + rank)
    shape = (sizes[rank], LENGTH)
    x = torch.randint(VOCABULARY, shape, generator=generator)
    y = torch.randint(VOCABULARY, shape, generator=generator)
    if masked:
        y[torch.rand(shape, generator=generator) < 0.6] = -1
        y[:, 0] = 1
    return x, y


def wrapped(kind: str) -> nn.Module:
    """The model as DDP or FSDP2 has it."""
    model = make_model()
    if kind == "buffers":  # which DDP sends to all ranks before a forward pass
        model.norm.register_buffer("seen", torch.zeros(3))
    if kind == "unused":
        model.spare = nn.Linear(WIDTH, WIDTH)
        return DistributedDataParallel(model, find_unused_parameters=True)
    if kind in ("ddp", "buffers"):
        return DistributedDataParallel(model)
    from torch.distributed.fsdp import fully_shard

    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)
    return model


def full(tensor: Tensor) -> Tensor:
    """All shards of it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def relative_error(model: nn.Module, case: str, world: int) -> float:
    """Of the gradient left by the last step, to one backward pass over everything."""
    whole = [batch_of(rank, case) for rank in range(world)]
    truth = whole_gradient(
        make_model(),
        loss,
        [(x[i : i + 1], y[i : i + 1]) for x, y in whole for i in range(len(x))],
    )
    grads = [full(p.grad) for p in model.parameters() if p.grad is not None]
    found = torch.cat([g.flatten().double() for g in grads])
    return float((found - truth).norm() / truth.norm())


def equality(kind: str, world: int, rank: int) -> dict[str, float]:
    """The error of every case, in micro-batches of 3."""
    found = {}
    for case in CASES:
        model = wrapped(kind)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        step = rb.Accumulator(model, loss, optimizer, micro_batch=3)
        step(batch_of(rank, case))
        found[case] = relative_error(model, case, world)
    return found


class Faults:
    """Raises out-of-memory errors: at a phase of a step, on one rank, some times."""

    def __init__(self, model: nn.Module, phase: str, passes: list[int]) -> None:
        self.phase, self.passes, self.count = phase, passes, 0
        head = next(m for n, m in model.named_modules() if n.endswith("blocks.1"))
        head.register_forward_pre_hook(self._forward)

    def _forward(self, module: nn.Module, args: tuple[Tensor]) -> None:
        self.count += 1
        if self.count not in self.passes:
            return
        if self.phase == "forward":
            self._fail()
        if args[0].requires_grad:
            args[0].register_hook(self._backward)

    def _backward(self, gradient: Tensor) -> None:
        self._fail()

    def _fail(self) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB")


def failing_before(passes: list[int]) -> Any:
    """The loss, out of memory in these passes before it has called the model."""
    count = 0

    def failing(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        nonlocal count
        count += 1
        if count in passes:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB")
        return loss(model, batch)

    return failing


def survival(phase: str, rank: int, passes: list[int], kind: str) -> dict[str, Any]:
    """Five steps with faults on rank 1 at these passes, and without."""
    found: dict[str, Any] = {}
    for faulty in (False, True):
        model = wrapped(kind)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        heard: list[str] = []
        hit = passes if faulty and rank == 1 else []
        step = rb.Accumulator(
            model,
            failing_before(hit) if phase == "before" else loss,
            optimizer,
            micro_batch=3,
            check=False,
            tell=heard.append,
        )
        if phase != "before":
            Faults(model, phase, hit)
        retries = 0
        for number in range(5):
            update = step(batch_of(rank, "ragged, masked", number))
            retries += update.retries
        values = torch.cat([p.detach().flatten() for p in model.parameters()])
        found["faulty" if faulty else "clean"] = values
        found["retries"], found["heard"] = retries, len(heard)
        found["micro"] = step.micro_batch_size.now
        steps = {int(s["step"]) for s in optimizer.state.values()}
        found["optimizer_steps"] = sorted(steps)
    clean, faulty_values = found.pop("clean"), found.pop("faulty")
    found["error"] = float((clean - faulty_values).norm() / clean.norm())
    return found


def watched(world: int, rank: int) -> dict[str, float]:
    """The noise scale that a monitor beside the accumulator reads, and the truth."""
    model = wrapped("ddp")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    monitor = rb.NoiseMonitor(model, optimizer, math.inf)
    step = rb.Accumulator(model, loss, optimizer, micro_batch=3, check=False)
    signal = noise = 0.0
    for number in range(4):
        step(batch_of(rank, "even", number))
        plain, parts = make_model(), []
        for other in range(world):
            total, count = loss(plain, batch_of(other, "even", number))
            mean = total / count / world
            grads = torch.autograd.grad(mean, list(plain.parameters()))
            parts.append(torch.cat([g.flatten() for g in grads]).double())
        one = noise_by_pairs(parts, [8] * world)
        signal, noise = signal + one[0], noise + one[1]
    found = monitor.read(window=10**6)
    return {"found": found.noise_scale.value, "true": noise / signal}


def failure(rank: int) -> dict[str, Any]:
    """A bug on one rank ends all of them, with a reason."""
    model = wrapped("ddp")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    step = rb.Accumulator(model, loss, optimizer, micro_batch=3, check=False)
    if rank == 1:
        hook = Faults(model, "forward", [2])
        hook._fail = lambda: (_ for _ in ()).throw(KeyError("a bug"))  # pyrefly: ignore
    try:
        step(batch_of(rank, "even"))
    except rb.JobError as error:
        return {"message": str(error)}
    return {"message": "none"}


def uneven(rank: int) -> list[dict[str, Any]]:
    """Batches of which one rank's is split and another's is not, or is one example."""
    found = []
    for sizes, most in (((5, 4), 4), ((4, 5), 4), ((6, 1), 3)):
        model = wrapped("ddp")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        step = rb.Accumulator(model, loss, optimizer, most, tell=lambda text: None)
        inputs, targets = batch_of(rank, "even")
        own = (inputs[: sizes[rank]], targets[: sizes[rank]])
        counts = [step(own).count for _ in range(2)]
        plain, total, count = make_model(), torch.zeros(()), 0.0
        for other in range(2):
            inputs, targets = batch_of(other, "even")
            one = loss(plain, (inputs[: sizes[other]], targets[: sizes[other]]))
            total, count = total + one[0], count + float(one[1])
        (total / count).backward()
        pairs = zip(model.parameters(), plain.parameters(), strict=True)
        grads = [(p.grad, q.grad) for p, q in pairs]
        error = max(
            float((p - q).abs().max())
            for p, q in grads
            if p is not None and q is not None
        )
        compared = step.equality is not None
        found.append({"counts": counts, "true": count, "error": error, "is": compared})
    return found


def found_by(kind: str, world: int, rank: int) -> Any:
    """What one kind of check finds on this rank."""
    if kind in ("ddp", "fsdp"):
        return equality(kind, world, rank)
    if kind == "watched":
        return watched(world, rank)
    if kind == "failure":
        return failure(rank)
    if kind == "uneven":
        return uneven(rank)
    phase, passes, model = kind.split(":")
    return survival(phase, rank, [int(p) for p in passes.split(",")], model)


def main() -> None:
    """Checks of these kinds, one after another; rank 0 writes what all have found."""
    out, *kinds = sys.argv[1:]
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    rank, world = dist.get_rank(), dist.get_world_size()
    found = {kind: found_by(kind, world, rank) for kind in kinds}
    everyone: list[Any] = [None] * world
    dist.all_gather_object(everyone, found)
    if rank == 0:
        Path(out).write_text(json.dumps(everyone))
    leave()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
