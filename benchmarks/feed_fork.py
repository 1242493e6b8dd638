"""Workers forked beside gloo's threads, round after round: does a loader ever hang?

Before 3.11.10 Python can lock up a child that is forked while another thread enters or
leaves Python (python/cpython#112275). Every round starts one worker, reads an epoch and
trains on it under DDP; what is counted are rounds, and the longest of them.

    timeout 300 torchrun --nproc-per-node 2 benchmarks/feed_fork.py rightbatch
    timeout 300 torchrun --nproc-per-node 2 benchmarks/feed_fork.py torch
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import rightbatch as rb
from results import write_json

LENGTH = 1003


class Texts(Dataset[Any]):
    """Sequences of very different lengths."""

    def __init__(self) -> None:
        numbers = torch.Generator().manual_seed(0)
        self.lengths = torch.randint(3, 60, (LENGTH,), generator=numbers)
        self.texts = [
            torch.randint(0, 50, (int(n),), generator=numbers) for n in self.lengths
        ]

    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int) -> Tensor:
        return self.texts[index]


def epoch(loader: str, data: Texts, model: nn.Module) -> None:
    """One round: new workers, a pass over the data, a collective in each step."""
    everybody: list[Any] = [None] * dist.get_world_size()
    if loader == "torch":
        for tokens in DataLoader(data, 64, collate_fn=torch.cat, num_workers=1):
            model(tokens).mean().backward()
            dist.all_gather_object(everybody, 1)
        return
    order = rb.data.Tokens(data.lengths, budget=600, count="tokens")
    options: dict[str, Any] = {"collate_fn": torch.cat, "num_workers": 1}
    with rb.BatchStream(data, 4000, order=order, **options) as stream:
        for step in stream.steps():
            for micro in step:
                (model(micro.data).mean() * (micro.token_share or 0)).backward()
            dist.all_gather_object(everybody, 1)


def main() -> None:
    """Rounds for as long as asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("loader", choices=["rightbatch", "torch"])
    parser.add_argument("--seconds", type=float, default=200)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    data = Texts()
    model = nn.parallel.DistributedDataParallel(nn.Embedding(50, 50))
    began, rounds, longest = time.perf_counter(), 0, 0.0
    while True:
        over = torch.tensor([float(time.perf_counter() - began > chosen.seconds)])
        dist.all_reduce(over)
        if over.item():
            break
        start = time.perf_counter()
        epoch(chosen.loader, data, model)
        rounds += 1
        longest = max(longest, time.perf_counter() - start)
        if dist.get_rank() == 0 and rounds % 50 == 0:
            spent = time.perf_counter() - began
            print(f"{rounds} rounds in {spent:.0f} s", flush=True)
    if dist.get_rank() == 0:
        version = sys.version.split()[0]
        print(f"Python {version}: {rounds} rounds, the longest {longest:.1f} s")
        write_json(
            f"feed-fork-{chosen.loader}",
            {"python": version, "rounds": rounds, "longest_s": longest},
        )
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
