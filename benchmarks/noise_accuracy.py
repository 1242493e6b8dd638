"""How near the noise scale is to the truth, at fixed weights and while training.

The truth is the noise over the full data set, every example by itself. A small
transformer reads bytes of Python's own library.

1. At fixed weights where the noise scale is about six batches: many runs of a monitor,
   300 steps each. Error after 300 steps, and how often the 95 % interval holds the
   truth.
2. While training, with SGD and Adam: the monitor as it comes and with every step
   measured, beside two forms in use elsewhere, which mix steps or keep the bias.

    python benchmarks/noise_accuracy.py      # some 20 minutes
"""

from __future__ import annotations

import argparse
import collections
import copy
import math
import statistics
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rightbatch as rb
from noise_models import Transformer
from results import write_json
from rightbatch.job.built_in.stdlib_gpt import read_library
from rightbatch.noise.monitor import WINDOW

LENGTH, EXAMPLES, BATCH = 32, 4096, 16
TRUTH_EVERY = 20  # steps
DECAY = 0.98  # of the moving averages that the other forms are given


def loss(model: Any, batch: tuple[Tensor]) -> Tensor:
    """Mean cross entropy of the next byte."""
    text = batch[0].long()
    logits = model(text[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten())


def make_job(optimizer: Any) -> rb.Job:
    """The job whose noise is asked for."""
    text = read_library()[0].flatten()[: EXAMPLES * (LENGTH + 1)]
    return rb.Job(
        model=lambda: Transformer(256, width=48, layers=2, length=LENGTH),
        loss=loss,
        data=(text.view(EXAMPLES, LENGTH + 1),),
        optimizer=optimizer,
        batch_size=BATCH,
    )


def truth(job: rb.Job, model: nn.Module) -> rb.NoiseScale:
    """Every example by itself."""
    return rb.noise_scale(job, at=model, exact=True, micro_batch=64)


def batches(job: rb.Job, seed: int) -> Any:
    """Batches drawn with replacement, without end."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield job.data[0][torch.randint(job.length, (BATCH,), generator=generator)]


def train_until(job: rb.Job, ratio: float) -> tuple[nn.Module, rb.NoiseScale]:
    """Train until the noise scale is so many batches."""
    torch.manual_seed(0)
    model = job.model()
    optimizer = job.optimizer(model.parameters())
    for step, x in enumerate(batches(job, 0)):
        if step % 25 == 0:
            known = truth(job, model)
            if known.noise_scale.value / BATCH >= ratio:
                return model, known
        optimizer.zero_grad()
        loss(model, (x,)).backward()
        optimizer.step()
    raise AssertionError


def fixed_weights(runs: int, steps: int) -> dict[str, Any]:
    """Many short runs that do not move."""
    job = make_job(lambda p: torch.optim.Adam(p, lr=2e-3))
    model, known = train_until(job, 6.0)
    true = known.noise_scale.value
    print(f"truth {true:.1f}, {true / BATCH:.2f} batches", flush=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    values, held, widths = [], 0, []
    for run in range(runs):
        # The population is the data set: examples are drawn with replacement.
        monitor = rb.NoiseMonitor(model, optimizer, math.inf, verify=run == 0)
        source = batches(job, 1000 + run)
        for _ in range(steps):
            optimizer.zero_grad()
            loss(model, (next(source),)).backward()
            optimizer.step()
        found = monitor.read(window=steps * BATCH).noise_scale
        monitor.close()
        values.append(found.value / true)
        widths.append(found.relative)
        held += found.low <= true <= found.high
        if run % 20 == 19:
            print(f"  {run + 1} runs: {held / (run + 1):.3f} held", flush=True)
    errors = [abs(v - 1) for v in values]
    return {
        "truth": true,
        "truth over batch": true / BATCH,
        "runs": runs,
        "steps": steps,
        "median ratio": statistics.median(values),
        "median error": statistics.median(errors),
        "within 10 %": sum(e <= 0.1 for e in errors) / runs,
        "coverage": held / runs,
        "median half width": statistics.median(widths),
    }


class MultiStep:
    """Ten steps in a row as the large batch, as in gpt-neox: weights move between."""

    def __init__(self) -> None:
        self.grads: list[Tensor] = []
        self.small: list[float] = []
        self.num = self.den = 0.0

    def see(self, gradient: Tensor) -> None:
        """One step's gradient."""
        self.grads.append(gradient)
        self.small.append(float(gradient @ gradient))
        if len(self.grads) < 10:
            return
        mean = torch.stack(self.grads).mean(0)
        big, small = float(mean @ mean), statistics.mean(self.small)
        signal = (10 * BATCH * big - BATCH * small) / (9 * BATCH)
        noise = (small - big) / (1 / BATCH - 1 / (10 * BATCH))
        self.num = DECAY**10 * self.num + (1 - DECAY**10) * noise
        self.den = DECAY**10 * self.den + (1 - DECAY**10) * signal
        self.grads, self.small = [], []

    @property
    def scale(self) -> float:
        """Ratio of the averages."""
        return self.num / self.den if self.den > 0 else math.nan


class RawNorm:
    """The batch gradient's own norm as the signal, as in norm tests."""

    def __init__(self) -> None:
        self.num = self.den = 0.0

    def see(self, noise: float, total: float) -> None:
        """One step's noise, and its gradient's squared norm with the bias in it."""
        self.num = DECAY * self.num + (1 - DECAY) * noise
        self.den = DECAY * self.den + (1 - DECAY) * total

    @property
    def scale(self) -> float:
        """Ratio of the averages."""
        return self.num / self.den if self.den > 0 else math.nan


OPTIMIZERS: dict[str, Any] = {
    "SGD momentum 0.05": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "Adam 1e-3": lambda p: torch.optim.Adam(p, lr=1e-3),
    "Adam 3e-3": lambda p: torch.optim.Adam(p, lr=3e-3),
}


def training(name: str, steps: int, every: int) -> dict[str, Any]:
    """One run, all forms beside each other, the truth at checkpoints."""
    job = make_job(OPTIMIZERS[name])
    torch.manual_seed(0)
    model = job.model()
    optimizer = job.optimizer(model.parameters())
    away = 0.0
    clock = lambda: time.process_time() - away  # ruff: ignore[lambda-assignment]
    forms: dict[str, Any] = {
        "monitor, 2 %": rb.NoiseMonitor(model, optimizer, clock=clock),
        "monitor, every step": None,
    }
    twin = copy.deepcopy(model)  # follows the same path, watched at every step
    follower = job.optimizer(twin.parameters())
    forms["monitor, every step"] = rb.NoiseMonitor(twin, follower, math.inf)
    several, raw = MultiStep(), RawNorm()
    rows: dict[str, list[float]] = collections.defaultdict(list)
    truths: list[tuple[int, float, float]] = []
    for step, x in enumerate(batches(job, 7), start=1):
        optimizer.zero_grad()
        loss(model, (x,)).backward()
        optimizer.step()
        left = time.process_time()
        follower.zero_grad()
        loss(twin, (x,)).backward()
        parts = [p.grad for p in twin.parameters() if p.grad is not None]
        gradient = torch.cat([g.flatten() for g in parts])
        follower.step()
        several.see(gradient)
        block = forms["monitor, every step"].history.blocks[-1:]
        if block:
            noise = float(block[0].noise.sum() / block[0].weight)
            raw.see(noise, float(gradient @ gradient))
        if step % TRUTH_EVERY == 0:
            known = truth(job, model)
            truths.append((step, known.trace.value, known.grad_norm_sq.value))
        if step % every == 0:
            here = truths[-1][1] / truths[-1][2]
            # What a window averages: noise and signal apart, then their ratio.
            inside = [t for t in truths if t[0] > (1 - WINDOW) * step]
            over = sum(t[1] for t in inside) / sum(t[2] for t in inside)
            rows["truth"].append(here)
            for form, monitor in forms.items():
                value = monitor.noise_scale.value
                rows[form].append(value / here)
                rows[f"{form}, its window"].append(value / over)
            rows["ten steps as one batch"].append(several.scale / here)
            rows["raw norm"].append(raw.scale / here)
        away += time.process_time() - left
        if step >= steps:
            break
    cost = forms["monitor, 2 %"].read().cost
    return {
        "optimizer": name,
        "rows": dict(rows),
        "cost": cost,
        "median": {
            form: float(np.nanmedian(values))
            for form, values in rows.items()
            if form != "truth"
        },
        "worst": {
            form: float(np.nanmax(np.abs(np.log(np.maximum(values, 1e-9)))))
            for form, values in rows.items()
            if form != "truth"
        },
    }


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=240)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--training", type=int, default=1500)
    parser.add_argument("--every", type=int, default=100)
    options = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, Any] = {"training": []}
    for name in OPTIMIZERS if options.training else ():
        found = training(name, options.training, options.every)
        report["training"].append(found)
        truths = found["rows"]["truth"]
        print(f"\n{name}: truth from {truths[0]:.0f} to {truths[-1]:.0f}")
        for form, median in found["median"].items():
            worst = math.exp(found["worst"][form])
            row = " ".join(f"{v:.2f}" for v in found["rows"][form])
            print(f"  {form:30} {median:6.2f} x  worst {worst:.2f} x   {row}")
        print(f"  cost by its own account {found['cost']:.3f}", flush=True)
    if options.runs:
        report["fixed"] = fixed_weights(options.runs, options.steps)
        for key, value in report["fixed"].items():
            print(f"  {key}: {value:.3g}")
    write_json("noise-accuracy", report)


if __name__ == "__main__":
    main()
