"""What it costs that devices tell each other their gradients."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from scipy import optimize

from rightbatch.core.errors import SettingError, UnidentifiedError

SIZES = (2**10, 2**16, 2**20, 2**22, 2**24)  # bytes
ROUNDS = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    r"""The time of an all-reduce over $n$ devices by two numbers (Hockney 1994).

    A ring moves every byte $2(n-1)/n$ times past each device and takes $2(n-1)$
    messages one after the other; a double binary tree moves it twice and takes
    $2\log_2 n$ messages. Libraries take the faster one, as NCCL does.

    Attributes:
        bandwidth: Bytes per second and direction that leave a node, all its links
            together (NCCL's bus bandwidth): inside a node devices share the work.
        latency_s: Seconds before a message's first byte.
        source: Where the two come from.
    """

    bandwidth: float
    latency_s: float
    source: str = "as given"

    def __post_init__(self) -> None:
        if not 0 < self.bandwidth < math.inf or not 0 <= self.latency_s < math.inf:
            raise SettingError(
                "a network needs a positive bandwidth and a latency",
                seen=f"bandwidth={self.bandwidth}, latency_s={self.latency_s}",
                fix="--bandwidth 400Gb/s --latency 20us",
            )

    def all_reduce_s(self, size: float, devices: int) -> float:
        """Seconds to sum ``size`` bytes over so many devices."""
        n = devices
        if n == 1:
            return 0.0
        ring = 2 * (n - 1) * (size / n / self.bandwidth + self.latency_s)
        tree = 2 * (size / self.bandwidth + math.ceil(math.log2(n)) * self.latency_s)
        return min(ring, tree)


# A cloud's usual links where nothing is said [assumed].
ASSUMED = Network(bandwidth=100e9 / 8, latency_s=20e-6, source="assumed")


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkPoint:
    """One all-reduce: its size, the processes in it, and its median time."""

    bytes: int
    devices: int
    seconds: float


def measure_network() -> tuple[LinkPoint, ...]:
    """Time all-reduces of several sizes over the default group. Collective.

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
    cuda = "nccl" in dist.get_backend()  # also of "cpu:gloo,cuda:nccl"
    device = torch.device("cuda" if cuda else "cpu")
    points = []
    for size in SIZES:
        tensor = torch.zeros(size // 4, device=device)
        times = []
        for _ in range(ROUNDS + 2):
            dist.barrier()
            started = time.perf_counter()
            dist.all_reduce(tensor)
            if cuda:
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - started)
        # The slowest rank ends the exchange; the first two made connections.
        worst = torch.tensor(statistics.median(times[2:]), device=device)
        dist.all_reduce(worst, op=dist.ReduceOp.MAX)
        points.append(LinkPoint(bytes=size, devices=devices, seconds=float(worst)))
    return tuple(points)


def fit_network(points: Sequence[LinkPoint]) -> Network:
    """Bandwidth and latency from measured all-reduces of several sizes.

    Least squares on relative errors of `Network.all_reduce_s`.

    Raises:
        UnidentifiedError: Fewer than two sizes, or only one process.
    """
    sizes = {p.bytes for p in points}
    if len(sizes) < 2 or any(p.devices < 2 for p in points):
        raise UnidentifiedError(
            "a network needs all-reduces of 2 sizes over 2 processes or more",
            seen=f"{len(sizes)} sizes, {min(p.devices for p in points)} processes"
            if points
            else "nothing",
        )
    log_seconds = np.log([p.seconds for p in points])
    small = min(points, key=lambda p: p.bytes)
    large = max(points, key=lambda p: p.bytes)
    start = np.log([max(large.bytes / large.seconds, 1.0), small.seconds / 4])

    def errors(q: np.ndarray) -> np.ndarray:
        law = Network(bandwidth=math.exp(q[0]), latency_s=math.exp(q[1]))
        predicted = [law.all_reduce_s(p.bytes, p.devices) for p in points]
        return np.log(predicted) - log_seconds

    bandwidth, latency_s = np.exp(optimize.least_squares(errors, start).x)
    return Network(
        bandwidth=float(bandwidth),
        latency_s=float(latency_s),
        source=f"measured over {points[0].devices} processes",
    )
