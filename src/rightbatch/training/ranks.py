"""The processes that train one model together, and what they tell each other."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rightbatch.core.errors import SettingError
from rightbatch.noise.rank_gradients import sharded_modules

_host: dict[int, Any] = {}  # group of a world, made once


class Ranks:
    """This process among those that average their gradients.

    Args:
        model: The model as the loop calls it: its wrapper tells whether there are any.

    Attributes:
        rank: Number of this process.
        size: Number of processes; 1 without DDP or FSDP2.
        ddp: The wrapper, if DDP.
        sharded: Whether the model is sharded by FSDP2's ``fully_shard``.
    """

    def __init__(self, model: nn.Module) -> None:
        self.ddp = next(
            (m for m in model.modules() if isinstance(m, DistributedDataParallel)), None
        )
        self._shards = [] if self.ddp is not None else sharded_modules(model)
        self.sharded = bool(self._shards)
        wrapped = self.ddp is not None or self.sharded
        self.size = dist.get_world_size() if wrapped else 1
        self.rank = dist.get_rank() if wrapped else 0
        self._group = _host_group() if self.size > 1 else None

    def gather(self, numbers: Sequence[float]) -> list[list[float]]:
        """Every rank's numbers, in the order of ranks. Collective.

        On the host, so that a device's queue of work is not waited for.
        """
        if self.size == 1:
            return [list(numbers)]
        own = torch.tensor(list(numbers), dtype=torch.float64)
        everything = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(everything, own, group=self._group)
        return [one.tolist() for one in everything]

    def gather_objects(self, value: Any) -> list[Any]:
        """Every rank's plain value. Collective."""
        if self.size == 1:
            return [value]
        everything: list[Any] = [None] * self.size
        dist.all_gather_object(everything, value, group=self._group)
        return everything

    def from_first(self, value: Any) -> Any:
        """Rank 0's plain value. Collective."""
        if self.size == 1:
            return value
        box = [value if self.rank == 0 else None]
        dist.broadcast_object_list(box, src=0, group=self._group)
        return box[0]

    def agree(self, what: str, value: Any, fix: str) -> None:
        """Refuse, on every rank, what is not the same on all of them. Collective.

        Raises:
            SettingError: They differ; it says where.
        """
        values = self.gather_objects(value)
        other = next((i for i, v in enumerate(values) if v != values[0]), None)
        if other is not None:
            raise SettingError(
                f"the ranks do not agree on {what}",
                seen=_difference(values[0], values[other], other),
                why="they would train different models, or wait for each other forever",
                fix=fix,
            )

    def total(self, numbers: torch.Tensor) -> torch.Tensor:
        """Sum over the ranks, in place, on the device. Collective."""
        if self.size > 1:
            dist.all_reduce(numbers)
        return numbers

    @contextmanager
    def keeping_quiet(self) -> Iterator[None]:
        """Around forward and backward passes whose gradients stay on their rank."""
        self._exchange_in_shards(False)
        with nullcontext() if self.ddp is None else self.ddp.no_sync():
            yield

    def exchange_next(self, loss: torch.Tensor) -> None:
        """The backward pass of this loss averages what has been summed so far.

        DDP decides that in the forward pass, after which a rank that ran out of memory
        could no longer call it off. So every forward pass is a quiet one, and the
        reducer is told when all ranks are ready, as DDP's own forward pass would.
        """
        self._exchange_in_shards(True)
        if self.ddp is not None:
            unused = [loss] if self.ddp.find_unused_parameters else []
            self.ddp.reducer.prepare_for_backward(unused)

    def begin_step(self) -> None:
        """What DDP does together in a forward pass, done before it. Collective.

        A rank that has run out of memory might not reach that pass while the others
        wait in it: for rank 0's buffers, and once for the order of its buckets.
        """
        if self.ddp is None or self.size == 1:
            return
        self.ddp.reducer._rebuild_buckets()
        if hasattr(self.ddp, "buffer_hook"):
            return  # the user's own way of sharing them
        self.ddp.require_forward_param_sync = False
        if not self.ddp.broadcast_buffers:
            return
        by_dtype: dict[Any, list[torch.Tensor]] = {}
        for buffer in self.ddp.modules_buffers:  # without those DDP is to ignore
            by_dtype.setdefault((buffer.dtype, buffer.device), []).append(buffer)
        with torch.no_grad():
            for buffers in by_dtype.values():
                flat = torch.cat([b.reshape(-1) for b in buffers])
                dist.broadcast(flat, src=0, group=self.ddp.process_group)
                parts = flat.split([b.numel() for b in buffers])
                for buffer, part in zip(buffers, parts, strict=True):
                    buffer.copy_(part.view_as(buffer))

    def _exchange_in_shards(self, wanted: bool) -> None:
        for _, module in self._shards:
            module.set_requires_gradient_sync(wanted, recurse=False)
            module.set_is_last_backward(wanted)


def _difference(first: Any, other: Any, rank: int) -> str:
    if isinstance(first, dict) and isinstance(other, dict):
        keys = [k for k in first if first.get(k) != other.get(k)]
        key = keys[0] if keys else "keys"
        return f"{key}: {first.get(key)!r} on rank 0, {other.get(key)!r} on rank {rank}"
    return f"{first!r} on rank 0, {other!r} on rank {rank}"


def _host_group() -> Any:
    """A group whose messages travel by host memory; None for the default one."""
    if dist.get_backend() == "gloo":
        return None
    world = id(dist.group.WORLD)
    if world not in _host:
        _host[world] = dist.new_group(backend="gloo")
    return _host[world]


def join() -> bool:
    """Under torchrun, join the others: gloo on CPUs, the device's own elsewhere.

    Returns:
        Whether this call joined, and whoever called it should leave at the end.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 and "TORCHELASTIC_RUN_ID" not in (
        os.environ
    ):
        return False
    if dist.is_initialized():
        return False
    # After a restart the store still holds the addresses of processes that are gone.
    store, rank, world = next(iter(dist.rendezvous("env://")))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(
        backend,
        store=dist.PrefixStore(f"attempt {attempt}", store),
        rank=rank,
        world_size=world,
    )
    return True


def leave(status: int = 0) -> None:
    """End this process together with the others, without tearing it down.

    One that goes while others still talk would break them off. And torch's background
    threads abort now and then when an interpreter is torn down after gloo was used
    ("terminate called without an active exception", about one exit in thirty on a busy
    machine [measured]), which torchrun takes for a failed run.
    """
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def share_first(make: Callable[[], Path], rank: int) -> Path:
    """What the first rank makes, told to the others. Collective, if there are any."""
    if not dist.is_initialized():
        return make()
    box: list[Any] = [str(make()) if rank == 0 else None]
    dist.broadcast_object_list(box, src=0)
    return Path(box[0])
