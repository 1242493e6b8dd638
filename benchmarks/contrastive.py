"""What contrastive losses in tiles cost, and cached steps by a budget of tokens.

Losses: forward and backward pass of b pairs, 512 wide, in a process of its own: median
CPU time, growth of the peak memory, and how far the gradient is from float64 (by our
own loss in float64, which the tests hold against the whole table). The naive form holds
the table of all similarities, as open_clip does. Over ranks: CPU time of all of them,
for the same pairs. Cached steps: a small transformer over texts of 32 to 256 tokens,
uniform in the logarithm. One thread.

    python benchmarks/contrastive.py                  # about ten minutes, 4 GiB
    python benchmarks/contrastive.py --batches 1024 4096 --rounds 3
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, logsigmoid, normalize

import rightbatch as rb
from results import write_json
from rightbatch.coupling.local_ranks import on_local_ranks

WIDTH, SCALE, BIAS = 512, 14.3, -10.0
MIB = 1024.0  # in ru_maxrss's unit
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def naive_info_nce(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """The whole table, twice through cross entropy."""
    table, labels = scale * images @ texts.T, torch.arange(len(images))
    return (cross_entropy(table, labels) + cross_entropy(table.T, labels)) / 2


def naive_siglip(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """The whole table, and as large a one of signs."""
    logits = scale * images @ texts.T + BIAS
    signs = 2 * torch.eye(len(images)) - 1
    return -logsigmoid(signs * logits).sum() / len(images)


LOSSES: dict[str, Loss] = {
    "info_nce naive": naive_info_nce,
    "info_nce": lambda a, b, s: rb.coupling.info_nce(a, b, scale=s),
    "siglip naive": naive_siglip,
    "siglip": lambda a, b, s: rb.coupling.siglip(a, b, scale=s, bias=BIAS),
}


def pairs(count: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Images, texts that are like them by .3, and a scale; all trained."""
    torch.manual_seed(0)
    one, noise = normalize(torch.randn(2, count, WIDTH), dim=2)
    made = [one, normalize(0.3 * one + noise, dim=1), torch.tensor(SCALE)]
    return [x.to(dtype).requires_grad_() for x in made]


def cpu_time(step: Callable[[], Any]) -> float:
    """Of this process, in seconds."""
    start = time.process_time()
    step()
    return time.process_time() - start


def one_loss(name: str, count: int, rounds: int) -> dict[str, float]:
    """What a process of its own measures."""
    inputs, loss = pairs(count), LOSSES[name]
    loss(*pairs(8)).backward()  # what a first call loads
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def step() -> None:
        for x in inputs:
            x.grad = None
        loss(*inputs).backward()

    times = [cpu_time(step) for _ in range(rounds)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {"cpu_time_s": statistics.median(times), "memory_mib": (peak - base) / MIB}
    if name.endswith(" naive") and count > 4096:
        return found
    exact = pairs(count, torch.float64)
    LOSSES[name.removesuffix(" naive")](*exact).backward()
    errors = [
        float((x.grad - y.grad).norm() / y.grad.norm())
        for x, y in zip(inputs, exact, strict=True)
        if x.grad is not None and y.grad is not None
    ]
    return {**found, "error": max(errors)}


def losses(batches: list[int], rounds: int) -> dict[str, Any]:
    """The table over batches, each figure from a fresh process."""
    found: dict[str, Any] = {}
    for kind in ("info_nce", "siglip"):
        for count in batches:
            if kind == "siglip" and count > 4096:
                continue
            few = rounds if count < 16384 else 1
            figures = {}
            for name in (f"{kind} naive", kind):
                command = [
                    sys.executable,
                    __file__,
                    "--one",
                    name,
                    str(count),
                    str(few),
                ]
                done = subprocess.run(
                    command, capture_output=True, text=True, check=True
                )
                figures[name] = json.loads(done.stdout)
            naive, ours = figures[f"{kind} naive"], figures[kind]
            figures["time_ratio"] = ours["cpu_time_s"] / naive["cpu_time_s"]
            figures["memory_ratio"] = naive["memory_mib"] / max(ours["memory_mib"], 1)
            found[f"{kind} {count}"] = figures
            print(
                f"{kind:9}{count:6}: time {figures['time_ratio']:.2f} x, memory "
                f"{naive['memory_mib']:.0f} / {ours['memory_mib']:.0f} MiB = "
                f"{figures['memory_ratio']:.0f} x less, error {ours['error']:.1e} "
                f"(naive {naive.get('error', math.nan):.1e})",
                flush=True,
            )
    return found


def ranks(count: int = 1024) -> dict[int, Any]:
    """CPU time of all ranks for one batch, over that of one rank; and the error."""

    def measured() -> dict[str, float]:
        images, texts, scale = pairs(count)
        rank, world = dist.get_rank(), dist.get_world_size()
        own = slice(rank * count // world, (rank + 1) * count // world)
        times = []
        for _ in range(3):
            images.grad = texts.grad = scale.grad = None
            dist.barrier()
            times.append(
                cpu_time(
                    lambda: rb.coupling.info_nce(
                        images[own], texts[own], scale=scale
                    ).backward()
                )
            )
        every = torch.tensor(statistics.median(times))
        dist.all_reduce(every)
        mean = [x.grad / world for x in (images, texts, scale) if x.grad is not None]
        for gradient in mean:
            dist.all_reduce(gradient)
        exact = pairs(count, torch.float64)
        rb.coupling.info_nce(*exact[:2], scale=exact[2], process_group=False).backward()
        errors = [
            float((x - y.grad).norm() / y.grad.norm())
            for x, y in zip(mean, exact, strict=True)
            if y.grad is not None
        ]
        return {"cpu_time_s": float(every), "error": max(errors)}

    found = on_local_ranks(measured, [1, 2, 4], patience_s=400)
    for world, figures in found.items():
        figures["work_ratio"] = figures["cpu_time_s"] / found[1]["cpu_time_s"]
        print(
            f"{world} rank(s), {count} pairs: all ranks' time "
            f"{figures['work_ratio']:.2f} x, error {figures['error']:.1e}",
            flush=True,
        )
    return found


class Texts(nn.Module):
    """A small transformer; the mean over what is no padding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(1000, 128)
        layer = nn.TransformerEncoderLayer(128, 4, 512, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """Normalized, one row for each text."""
        padding = batch["mask"].logical_not()
        hidden = self.layers(self.table(batch["ids"]), src_key_padding_mask=padding)
        kept = batch["mask"][:, :, None]
        return normalize((hidden * kept).sum(1) / kept.sum(1), dim=1)


def cached_steps(count: int = 256, rounds: int = 3) -> dict[str, Any]:
    """Chunks by tokens against chunks of as many examples as then always fit."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.rand(count, generator=generator)
    lengths = (32 * 8**spread).long()
    lengths[0], longest, fixed = 256, 256, 16
    mask = torch.arange(longest) < lengths[:, None]
    ids = torch.randint(1000, mask.shape, generator=generator) * mask
    batch = {"ids": ids, "mask": mask}
    others = torch.randn(count, 128, generator=generator)
    model, keys = Texts(), nn.Linear(128, 128)

    def loss(a: Tensor, b: Tensor) -> Tensor:
        return rb.coupling.info_nce(a, normalize(b, dim=1), scale=20.0)

    def by(**limits: Any) -> Callable[[], Any]:
        parts = [(model, batch), (keys, others)]
        return lambda: rb.coupling.cached_step(parts, loss, **limits)

    methods: dict[str, Callable[[], Any]] = {
        "fixed": by(micro_batch=fixed),
        "tokens": by(
            tokens=fixed * longest, lengths=[lengths, None], micro_batch=count
        ),
        "at once": lambda: loss(model(batch), keys(others)).backward(),
    }
    times: dict[str, list[float]] = {name: [] for name in methods}
    gradients = {}
    for _ in range(rounds):
        for name, step in methods.items():
            model.zero_grad()
            times[name].append(cpu_time(step))
            flat = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
            gradients[name] = torch.cat(flat).double()
    exact = copy.deepcopy(model).double()
    exact.zero_grad()
    loss(exact(batch), keys(others).double()).backward()
    true = torch.cat(
        [p.grad.flatten() for p in exact.parameters() if p.grad is not None]
    )
    found: dict[str, Any] = {
        name: {
            "cpu_time_s": statistics.median(times[name]),
            "error": float((gradients[name] - true).norm() / true.norm()),
        }
        for name in methods
    }
    of_rounds = [a / b for a, b in zip(times["fixed"], times["tokens"], strict=True)]
    found["times faster"] = statistics.median(of_rounds)
    found["padding"] = longest * count / int(lengths.sum())
    print(
        f"cached step: by tokens {found['times faster']:.2f} x faster than by examples "
        f"(all padded: {found['padding']:.2f} x the tokens); errors "
        f"{found['tokens']['error']:.1e}, {found['fixed']['error']:.1e}, at once "
        f"{found['at once']['error']:.1e}",
        flush=True,
    )
    return found


def main() -> None:
    """Print the figures, and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    batches = [1024, 2048, 4096, 8192, 16384]
    parser.add_argument("--batches", type=int, nargs="*", default=batches)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", nargs=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.one:
        name, count, rounds = options.one
        print(json.dumps(one_loss(name, int(count), int(rounds))))
        return
    report = {
        "losses": losses(options.batches, options.rounds),
        "cached step": cached_steps(rounds=options.rounds),
        "ranks": ranks(),
    }
    write_json("contrastive", report)


if __name__ == "__main__":
    main()
