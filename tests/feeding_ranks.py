"""Run under torchrun by test_stream_ranks.py: DDP, a changing batch, a ledger."""

from __future__ import annotations

import json
import math
import sys
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import rightbatch as rb
from rightbatch.data.loading.ledger import Ledger
from rightbatch.data.loading.shard_stream import ShardStream
from rightbatch.data.order.neyman import StratumMeter
from rightbatch.training.ranks import leave


def strata_states(rank: int, world: int) -> list[list[Any]]:
    """The states of every rank while each one's meter sees other examples."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(400, 4, generator=generator)
    y = (torch.arange(400) % 20 == 0).long()
    strata = rb.data.Strata(y, "neyman", multiple=8)
    weight = torch.zeros(4, requires_grad=True)
    meter = StratumMeter([weight], strata, overhead=math.inf)
    stream = rb.BatchStream((x, y), 32, order=strata)
    found: list[list[Any]] = []
    for step in stream.steps():
        for micro in step:
            inputs, labels = micro.data
            losses = (inputs @ weight - 5 * labels - rank).square()
            meter(losses, micro.groups)
        everyone: list[Any] = [None] * world
        dist.all_gather_object(everyone, stream.state_dict())
        found.append(everyone)
    return found


class Broken:
    """One rank's first read fails, once."""

    def __init__(self, fails: bool) -> None:
        self.fails = fails

    def __iter__(self) -> Iterator[int]:
        for number in range(16):
            if self.fails:
                self.fails = False
                raise OSError("once")
            yield number


def shard_life(rank: int) -> list[Any]:
    """Sources that fail on one rank, are not made alike, or come in any order."""
    found: list[Any] = []
    stream = ShardStream(Broken(rank == 0), 4)
    while not stream.epoch:
        try:
            found += [m.data.tolist() for s in stream.steps() for m in s]
        except OSError:
            continue
    sharded = ShardStream(range(10 + 2 * rank), 4, sharded=True, tail="carry")
    while sharded.step < 8:
        next(iter(sharded))
    again = ShardStream(range(10 + 2 * rank), 4, sharded=True, tail="carry")
    again.load_state_dict(sharded.state_dict())
    found.append(len(next(iter(again))))
    try:
        next(iter(ShardStream(range(16), 4 + rank)))
    except rb.SettingError as error:
        found.append(str(error))
    order = torch.randperm(500, generator=torch.Generator().manual_seed(rank)).tolist()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        next(iter(ShardStream(order, 4)))
    found.append([str(w.message) for w in caught])
    return found


def refusal(x: torch.Tensor, **options: Any) -> str:
    """What a stream says whose ranks were not made alike."""
    try:
        next(rb.BatchStream((x,), **options).steps())
    except rb.SettingError as error:
        return str(error)
    return ""


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    x, y = torch.randn(53, 4), torch.randn(53, 1)
    model = nn.Linear(4, 1)
    parallel = DistributedDataParallel(model)
    data = (x, y, torch.arange(53))
    stream = rb.BatchStream(
        data, 7, seed=6, micro_batch=2, num_workers=rank % 2, ledger=folder / "ledger"
    )
    asked, seen, errors = [], [], []
    sizes = [7, 12, 3, 16, 1, 9]
    while stream.epoch < 2:
        for step in stream.steps():
            stream.batch_size, size = sizes[stream.step % 6], stream.batch_size
            parallel.zero_grad()
            parts = list(step)
            for number, micro in enumerate(parts):
                last = number + 1 == len(parts)
                with nullcontext() if last else parallel.no_sync():
                    loss = (parallel(micro.data[0]) - micro.data[1]).square().mean()
                    (loss * micro.share).backward()
            mine = [i for m in parts if m.share for i in m.data[2].tolist()]
            everyone: list[Any] = [None] * world
            dist.all_gather_object(everyone, mine)
            index = [i for part in everyone for i in part]
            loss = (model(x[index]) - y[index]).square().mean()
            (whole,) = torch.autograd.grad(loss, [model.weight])
            grad = model.weight.grad
            assert grad is not None
            errors.append(float((whole - grad).abs().max()))
            asked.append(size)
            seen.append(index)
    stream.close()
    states = strata_states(rank, world)
    refusals = [
        refusal(x, batch_size=8, seed=rank),
        refusal(x[: 40 + rank], batch_size=8),
        refusal(x, batch_size=8 + (rank == world - 1)),
    ]
    shards = shard_life(rank)
    dist.barrier()
    if rank == 0:
        audit = Ledger(folder / "ledger").audit()
        found = {
            "asked": asked,
            "seen": seen,
            "gradient error": max(errors),
            "audit": [audit.lost, audit.repeated],
            "strata states": states,
            "refusals": refusals,
            "shards": shards,
        }
        (folder / "found.json").write_text(json.dumps(found))
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
