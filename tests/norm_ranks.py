"""Run under torchrun by test_synchronized_norm.py: all ranks against one process."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import rightbatch as rb
from rightbatch.coupling.synchronized_norm import SyncBatchNorm

SIZES = [5, 2, 7, 1]  # examples of every rank
CASES: dict[str, dict[str, Any]] = {
    "1d": {"shape": (6,)},
    "sequence": {"shape": (6, 5)},
    "2d": {"shape": (4, 3, 3)},
    "3d": {"shape": (4, 2, 2, 3)},
    "plain": {"shape": (6,), "affine": False},
    "cumulative": {"shape": (6,), "momentum": None},
    "untracked": {"shape": (6,), "track_running_stats": False},
    "double": {"shape": (4, 3, 3), "dtype": torch.float64},
    "far": {"shape": (6,), "offset": 100.0},
}


class Net(nn.Module):
    """Channels are mixed, normalised and read out."""

    def __init__(self, norm: nn.Module, channels: int) -> None:
        super().__init__()
        self.mix = nn.Linear(channels, channels, bias=False)
        self.norm, self.head = norm, nn.Linear(channels, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.mix(x.movedim(1, -1)).movedim(-1, 1)).sigmoid()
        return self.head(y.flatten(2).mean(2) if y.dim() > 2 else y)


class WholeBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Of inputs with any number of axes, on one process."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass


def differences(case: dict[str, Any], group: Any) -> dict[str, float]:
    """The largest of each kind, over the size of what it is compared with."""
    world, rank = dist.get_world_size(group), dist.get_rank(group)
    settings = dict(case)
    shape, offset = settings.pop("shape"), settings.pop("offset", 0.0)
    dtype = settings.pop("dtype", torch.float32)
    sizes = SIZES[:world]
    generator = torch.Generator().manual_seed(0)
    nets = []
    for kind in (SyncBatchNorm, WholeBatchNorm):
        torch.manual_seed(0)
        nets.append(Net(kind(shape[0], **settings), shape[0]).to(dtype))
    nets[0].norm.process_group = group
    together = DistributedDataParallel(
        nets[0], broadcast_buffers=False, process_group=group
    )
    for _ in range(2):
        x = torch.randn(sum(sizes), *shape, generator=generator, dtype=dtype)
        x = x * 2 + offset
        own = x.split(sizes)[rank].clone().requires_grad_()
        whole = x.clone().requires_grad_()
        for net in nets:
            net.zero_grad()
        weight = world * sizes[rank] / sum(sizes)
        (together(own).square().mean() * weight).backward()
        nets[1](whole).square().mean().backward()
    assert own.grad is not None
    assert whole.grad is not None
    pairs = {
        "parameters": zip(nets[0].parameters(), nets[1].parameters(), strict=True),
        "buffers": zip(nets[0].buffers(), nets[1].buffers(), strict=True),
    }
    found = {
        "parameters": [(a.grad, b.grad) for a, b in pairs["parameters"]],
        "inputs": [(own.grad / world, whole.grad.split(sizes)[rank])],
        "buffers": [(a.double(), b.double()) for a, b in pairs["buffers"]],
        "eval": [(nets[0].eval()(x), nets[1].eval()(x))],
    }
    return {
        name: max((relative(a, b) for a, b in values), default=0.0)
        for name, values in found.items()
    }


def relative(ours: Any, truth: Any) -> float:
    """The norm of their difference over the truth's."""
    difference = (ours - truth).detach().norm()
    return float(difference / truth.detach().norm().clamp(min=1e-12))


def accumulated(world: int, rank: int) -> float:
    """The gradient of an accumulator on ragged ranks, against one process."""
    grads = []
    x = torch.randn(sum(SIZES[:world]), 6, generator=torch.Generator().manual_seed(1))
    for kind in (SyncBatchNorm, WholeBatchNorm):
        torch.manual_seed(0)
        net = Net(kind(6), 6)
        if kind is SyncBatchNorm:
            model = DistributedDataParallel(net)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
            step = rb.Accumulator(model, loss, optimizer, check=False)
            step(x.split(SIZES[:world])[rank])
        else:
            loss(net, x).backward()
        grads.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    return relative(*grads)


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    """The mean over examples."""
    return model(batch).square().mean()


def autocast(rank: int) -> dict[str, Any]:
    """What bfloat16 leaves of the statistics and the output."""
    norm, plain = SyncBatchNorm(8), nn.BatchNorm1d(8)
    x = torch.randn(8, 8, generator=torch.Generator().manual_seed(2))
    with torch.autocast("cpu", torch.bfloat16):
        y = norm(x.bfloat16())
    plain(torch.cat([x] * dist.get_world_size()))
    y.float().sum().backward()
    return {
        "dtype": str(y.dtype),
        "var": relative(norm.running_var, plain.running_var),
        "gradient": str(norm.weight.grad.dtype),
    }


def empty(rank: int) -> str:
    """The error where one rank has no example."""
    try:
        SyncBatchNorm(3)(torch.randn(0 if rank == 1 else 4, 3))
    except rb.JobError as error:
        return str(error)
    return ""


def main(out: Path) -> None:
    """All of it; rank 0 writes what each rank has found."""
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    found = {
        "4": {name: differences(case, None) for name, case in CASES.items()},
        "2": {name: differences(case, pairs[rank // 2]) for name, case in CASES.items()},
        "accumulated": accumulated(world, rank),
        "autocast": autocast(rank),
        "empty": empty(rank),
    }
    everyone: list[Any] = [None] * world
    dist.all_gather_object(everyone, found)
    if rank == 0:
        out.write_text(json.dumps(everyone))
    dist.barrier()
    # gloo's threads sometimes end the interpreter with SIGABRT on its way out.
    os._exit(0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
