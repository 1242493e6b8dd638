"""How long the present process group takes to sum a gradient."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch
import torch.distributed as dist

from rightbatch.core.errors import SettingError

SIZES = (2**10, 2**16, 2**20, 2**22, 2**24)  # bytes
ROUNDS = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkPoint:
    """One all-reduce: its size, the processes in it, and its median time."""

    bytes: int
    devices: int
    seconds: float


def measure_network(
    device: torch.device | None = None, sizes: tuple[int, ...] = SIZES
) -> tuple[LinkPoint, ...]:
    """Time all-reduces of several sizes over the default group. Collective.

    Args:
        device: Where the tensors lie; default: the CPU for gloo, else CUDA.
        sizes: Bytes.

    Raises:
        SettingError: No process group, or only one process in it.
    """
    if not dist.is_available() or not dist.is_initialized():
        raise SettingError(
            "there is no process group to measure",
            fix="torchrun --nproc-per-node N -m rightbatch cluster PLAN --measure",
        )
    devices = dist.get_world_size()
    if devices < 2:
        raise SettingError("one process has no network", seen="world size 1")
    if device is None:
        cuda = "nccl" in dist.get_backend()  # also of "cpu:gloo,cuda:nccl"
        device = torch.device("cuda" if cuda else "cpu")
    points = []
    for size in sizes:
        tensor = torch.zeros(max(size // 4, 1), device=device)
        times = []
        for _ in range(ROUNDS + 2):
            dist.barrier()
            started = time.perf_counter()
            dist.all_reduce(tensor)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - started)
        # The slowest rank ends the exchange; the first two made connections.
        worst = torch.tensor(statistics.median(times[2:]), device=device)
        dist.all_reduce(worst, op=dist.ReduceOp.MAX)
        points.append(
            LinkPoint(bytes=4 * tensor.numel(), devices=devices, seconds=float(worst))
        )
    return tuple(points)
