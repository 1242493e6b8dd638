"""Where a model is trained: on a device for each rank, copied or sharded over ranks."""

from __future__ import annotations

import dataclasses
import os

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rightbatch.core.errors import SettingError
from rightbatch.job.job import Job


def wrapped(model: nn.Module, *, shard: bool) -> nn.Module:
    """The model as several ranks train it: DDP, or sharded by FSDP2.

    Sharded are the repeated blocks (members of a ``ModuleList`` or ``Sequential``), and
    what is left as a whole.
    """
    if not torch.distributed.is_initialized():
        if shard:
            raise SettingError(
                "shard needs several processes",
                fix="torchrun --nproc-per-node 2 -m rightbatch train ... --shard",
            )
        return model
    if shard:
        from torch.distributed.fsdp import fully_shard

        for module in list(model.modules()):
            if isinstance(module, (nn.ModuleList, nn.Sequential)):
                for block in module:
                    if any(True for _ in block.parameters()):
                        fully_shard(block)
        fully_shard(model)
        return model
    device = next(model.parameters()).device
    ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=ids)


def placed(job: Job) -> Job:
    """Each rank on a device of its own, where there are devices."""
    local = os.environ.get("LOCAL_RANK")
    wanted = None if job.device is None else torch.device(job.device).type
    devices = torch.distributed.is_initialized() and torch.cuda.is_available()
    if devices and local is not None and wanted in (None, "cuda"):
        return dataclasses.replace(job, device=f"cuda:{local}")
    return job
