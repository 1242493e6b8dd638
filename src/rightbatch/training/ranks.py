"""The processes that train one model together, and what they tell each other."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rightbatch.core.errors import SettingError
from rightbatch.noise.rank_gradients import sharded_modules

T = TypeVar("T")
_host: dict[int, Any] = {}  # group of a world, made once


class Ranks:
    """This process among those that average their gradients.

    Args:
        model: The model as the loop calls it: its wrapper tells whether there are any.

    Attributes:
        rank: Number of this process.
        size: Number of processes; 1 without DDP or FSDP2.
        ddp: The wrapper, if DDP.
        network: What it wraps, or the model itself.
        sharded: Whether the model is sharded by FSDP2's ``fully_shard``.
    """

    def __init__(self, model: nn.Module) -> None:
        self.ddp = next(
            (m for m in model.modules() if isinstance(m, DistributedDataParallel)), None
        )
        self.network: nn.Module = model if self.ddp is None else self.ddp.module
        if self.ddp is not None and self.ddp.static_graph:
            raise SettingError(
                "DDP(static_graph=True) cannot be accumulated exactly",
                seen="static_graph=True",
                why="gradients are exchanged in a pass of their own, which has another "
                "graph than the model's",
                fix="leave static_graph out",
            )
        self._shards = [] if self.ddp is not None else sharded_modules(model)
        self.sharded = bool(self._shards)
        wrapped = self.ddp is not None or self.sharded
        self.size = dist.get_world_size() if wrapped else 1
        self.rank = dist.get_rank() if wrapped else 0
        self._group = _host_group() if self.size > 1 else None
        self._settled = False

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

    def first(self, number: float) -> float:
        """The first rank's number, which all ranks go by. Collective."""
        return number if self.size == 1 else self.gather([number])[0][0]

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

    def without_exchange(self) -> AbstractContextManager[Any]:
        """Around passes whose gradients and buffers stay on their rank for now."""
        if self.ddp is None:
            return nullcontext()
        self.ddp.require_forward_param_sync = False  # sent with the gradients
        return self.ddp.no_sync()

    def exchanging_last(self, micro_batches: Sequence[T]) -> Iterator[T]:
        """The micro-batches one by one; a sharded model exchanges in the last pass.

        FSDP2 frees gradients into shards as it goes, so its exchange cannot wait.
        """
        last = len(micro_batches) - 1
        for number, micro in enumerate(micro_batches):
            for _, module in self._shards:
                module.set_requires_gradient_sync(number == last, recurse=False)
                module.set_is_last_backward(number == last)
            yield micro

    def average_gradients(self) -> None:
        """The mean over the ranks of what lies in ``.grad``; DDP only. Collective.

        DDP exchanges in the backward pass of a model that it has called itself. So it
        calls one that computes nothing, with all its parameters: its buckets, its
        buffers and its communication hooks work as ever, and no rank waits in the
        middle of a pass for one that has run out of memory. What this gives up is that
        the exchange overlaps with the last backward pass.
        """
        if self.ddp is None:
            return
        trained = [p for p in self.ddp.parameters() if p.requires_grad]
        users = torch.tensor([float(p.grad is not None) for p in trained])
        if self.size > 1:
            dist.all_reduce(users, group=self._group)
        network = self.ddp.module
        self.ddp.module = _Touch(network, trained)
        try:
            self.ddp.require_forward_param_sync = True
            # By its `forward`: hooks on the model are not for a pass without examples.
            self.ddp.forward(None).backward()
            if not self._settled:
                # After its first exchange DDP orders its buckets anew, together, in the
                # next forward pass: now, where all ranks are.
                with self.ddp.no_sync():
                    self.ddp.forward(None)
                self._settled = True
        finally:
            self.ddp.module = network
        for parameter, ranks in zip(trained, users.tolist(), strict=True):
            if not ranks:  # no rank has a gradient: the optimizer must leave it alone
                parameter.grad = None


class _Touch(nn.Module):
    """Stands in for a model: zero, that depends on every parameter."""

    def __init__(self, network: nn.Module, parameters: list[nn.Parameter]) -> None:
        super().__init__()
        # Behind a function, so that nothing is registered a second time.
        self._of = lambda: (network, parameters)

    def named_buffers(self, *args: Any, **options: Any) -> Any:
        """The model's own, which DDP sends from the first rank to all."""
        return self._of()[0].named_buffers(*args, **options)

    def forward(self, nothing: None) -> torch.Tensor:
        zeros = [p.sum() * 0.0 for p in self._of()[1]]
        return torch.stack([zero.real.float() for zero in zeros]).sum()


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


def joined() -> bool:
    """Whether this process belongs to a group of several."""
    return dist.is_available() and dist.is_initialized()


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


def share_first(make: Callable[[], Path], first: bool) -> Path:
    """What the first rank makes, told to the others. Collective, if there are any."""
    if not dist.is_initialized():
        return make()
    box: list[Any] = [str(make()) if first else None]
    dist.broadcast_object_list(box, src=0)
    return Path(box[0])
