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


def errors(case: dict[str, Any], group: Any) -> dict[str, list[float]]:
    """Of all ranks, and of one process in the same precision, against float64."""
    world, rank = dist.get_world_size(group), dist.get_rank(group)
    settings = dict(case)
    shape, offset = settings.pop("shape"), settings.pop("offset", 0.0)
    dtype = settings.pop("dtype", torch.float32)
    sizes = SIZES[:world]
    generator = torch.Generator().manual_seed(0)
    nets = []
    for kind in (SyncBatchNorm, WholeBatchNorm, WholeBatchNorm):
        torch.manual_seed(0)
        nets.append(Net(kind(shape[0], **settings), shape[0]).to(dtype))
    ours, plain, truth = nets
    truth.double()
    ours.norm.process_group = group
    together = DistributedDataParallel(
        ours, broadcast_buffers=False, process_group=group
    )
    for _ in range(2):
        x = torch.randn(sum(sizes), *shape, generator=generator, dtype=dtype)
        x = x * 2 + offset
        own = x.split(sizes)[rank].clone().requires_grad_()
        wholes = [x.to(t, copy=True).requires_grad_() for t in (dtype, torch.float64)]
        for net in nets:
            net.zero_grad()
        weight = world * sizes[rank] / sum(sizes)
        (together(own).square().mean() * weight).backward()
        for net, whole in zip((plain, truth), wholes, strict=True):
            net(whole).square().mean().backward()
    own_part = wholes[1].grad.clone()  # whose other rows are right by definition
    own_part.split(sizes)[rank].copy_(own.grad / world)
    inputs = [own_part, *(w.grad for w in wholes)]
    found = []
    for net, gradient in zip(nets, inputs, strict=True):
        kept = [b.flatten().double() for b in net.buffers()] or [torch.zeros(1)]
        found.append(
            {
                "parameters": gradients(net),
                "inputs": gradient,
                "buffers": torch.cat(kept),
                "eval": net.eval()(x.to(net.head.weight.dtype)),
            }
        )
    return {
        name: [relative(of[name], found[2][name]) for of in found[:2]]
        for name in found[0]
    }


def gradients(net: nn.Module) -> Tensor:
    """Of all parameters, as one vector."""
    return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])


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
        grads.append(gradients(net))
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
        "4": {name: errors(case, None) for name, case in CASES.items()},
        "2": {name: errors(case, pairs[rank // 2]) for name, case in CASES.items()},
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
