"""Steps on a device: their time, their joules, their data, and where memory ends."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import rightbatch as rb
from device_cases import classifier_job, large, seconds
from rightbatch.core.trees import to_device
from rightbatch.measure.energy import find_meter, measure_energy
from rightbatch.measure.time import time_steps
from rightbatch.training.run_state import RunState

Record = Callable[[str, object], None]


def test_step_time_is_what_the_events_say(
    device: torch.device, record_property: Record
) -> None:
    """Of 8 rounds by turns, the median ratio: 10 % on a GPU, twice on the CPU."""
    run = RunState.start(classifier_job(device))
    run.split(4096 if large(device) else 1024)

    def step() -> None:
        run.optimizer.zero_grad()
        for part in run.next_batch():
            loss: Any = run.job.loss(run.model, to_device(part.data, device))
            loss.backward()
        run.optimizer.step()

    ratios = []
    for _ in range(8):
        step()
        wall, process = time_steps(run, visit_s=0.05)
        timed = statistics.median(wall if large(device) else process)
        events = [seconds(device, step) for _ in range(5)]
        ratios.append(timed / statistics.median(events))
    ratio = statistics.median(ratios)
    record_property("step time / events", f"{ratio:.3f}")
    most = 1.1 if large(device) else 2.0
    assert 1 / most < ratio < most


def test_joules_are_those_of_a_plausible_power(
    device: torch.device, record_property: Record
) -> None:
    """A GPU draws 20 W to 2 kW while it trains; on the CPU a meter of 50 W."""
    meter, why = find_meter(device) if large(device) else (FiftyWatts(), "")
    if meter is None:  # a GPU that tells no energy, or the extra is not installed
        pytest.skip(why)
    run = RunState.start(classifier_job(device))
    run.step()
    size = 4096 if large(device) else 256
    window_s = 1.0 if large(device) else 0.1
    (point,) = measure_energy(run, [size], meter, window_s=window_s, rounds=2)
    took = statistics.median(seconds(device, run.step) for _ in range(20))
    watts = point.joules.value / took
    record_property("watts", f"{watts:.0f}, {meter.name}")
    low, high = (20, 2000) if large(device) else (25, 100)
    assert low < watts < high


class FiftyWatts:
    """While this process computes."""

    name = "50 W"

    def begin(self) -> None:
        self.started = time.process_time()

    def end(self) -> float:
        return 50 * (time.process_time() - self.started)


def test_pinned_prefetch_hands_out_the_same_examples(device: torch.device) -> None:
    """Two workers; pinned where there is a device to pin for."""
    x, y = torch.randn(512, 8), torch.arange(512)
    data = TensorDataset(x, y)
    plain = rb.BatchStream(data, batch_size=32, seed=1)
    pinned = rb.BatchStream(
        data, batch_size=32, seed=1, num_workers=2, pin_memory=large(device)
    )
    for one, other in zip(batches(plain), batches(pinned), strict=True):
        assert other[0].is_pinned() == large(device)
        moved = to_device(other, device)
        assert moved[0].device.type == device.type
        torch.testing.assert_close(moved[0].cpu(), one[0])
        assert torch.equal(moved[1].cpu(), one[1])


def batches(stream: rb.BatchStream) -> list[Any]:
    """Of eight steps."""
    steps = (step for step, _ in zip(stream.steps(), range(8), strict=False))
    return [part.data for step in steps for part in step]


class Limited(nn.Module):
    """On the CPU, fails as a full device does with more than ``fits`` examples."""

    def __init__(self, width: int, fits: int | None) -> None:
        super().__init__()
        self.fits = fits
        self.layers = nn.Sequential(
            nn.Linear(64, width),
            nn.GELU(),
            nn.Linear(width, width),
            nn.Linear(width, 8),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.fits is not None and len(x) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return self.layers(x)


def five_steps(device: torch.device, limited: bool) -> tuple[Tensor, list[int]]:
    """Parameters after five steps, with or without a limit, and their retries.

    On a GPU the limit is the allocator's own: room for one of four activations.
    """
    width, batch = (2048, 65_536) if large(device) else (32, 512)
    torch.manual_seed(0)
    model = Limited(width, 128 if limited and not large(device) else None).to(device)
    x = torch.randn(batch, 64, device=device)
    y = torch.randint(8, (batch,), device=device)
    step = rb.Accumulator(
        model,
        lambda m, b: F.cross_entropy(m(b[0]), b[1]),
        torch.optim.SGD(model.parameters(), lr=1e-3),
        check=False,
        tell=lambda text: None,
    )
    if large(device):
        step((x[:64], y[:64]))  # makes what libraries keep for themselves
    if limited and large(device):
        gc.collect()
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(device).total_memory
        room = torch.cuda.memory_reserved(device) + batch * width * 4
        torch.cuda.set_per_process_memory_fraction(room / total)
    try:
        updates = [step((x, y)) for _ in range(5)]
    finally:
        if large(device):
            torch.cuda.set_per_process_memory_fraction(1.0)
    values = torch.cat([p.detach().flatten().cpu() for p in model.parameters()])
    return values, [update.retries for update in updates]


def test_a_full_device_is_survived_and_changes_nothing(
    device: torch.device, record_property: Record
) -> None:
    whole, none = five_steps(device, limited=False)
    pieces, retries = five_steps(device, limited=True)
    record_property("retries in five steps", retries)
    assert sum(none) == 0
    assert retries[0] > 0
    assert (whole - pieces).norm() <= 1e-5 * whole.norm()
