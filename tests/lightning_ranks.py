"""A Lightning run on two ranks whose batch changes; writes what it saw."""

import copy
import json
import math
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning import pytorch as pl
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import rightbatch as rb
from rightbatch.integrations.lightning import Callback

torch.manual_seed(0)
DATA = TensorDataset(torch.randn(128, 3).double(), torch.randn(128, 2).double())
STAGES = rb.schedules.Stages(((0, 16), (64, 24), (160, 40), (300, 8)))


class Module(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        layers = nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)
        self.net = nn.Sequential(*layers).double()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return (self.net(batch[0]) - batch[1]).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Steps(pl.Callback):
    """Sizes of steps, and how far gradients are off."""

    def __init__(self) -> None:
        self.waiting: list[Any] = []
        self.sizes: list[int] = []
        self.off: list[float] = []

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        self.waiting.append(batch)

    def on_before_optimizer_step(self, trainer: Any, module: Any, _: Any) -> None:
        ranks: list[Any] = [None, None]
        dist.all_gather_object(ranks, self.waiting)
        self.waiting, net = [], copy.deepcopy(module.net)  # which no monitor watches
        x, y = (torch.cat([batch[i] for r in ranks for batch in r]) for i in (0, 1))
        with torch.enable_grad():
            loss = (net(x) - y).square().mean()
        large = torch.autograd.grad(loss, list(net.parameters()))
        pairs = zip(module.net.parameters(), large, strict=True)
        off = [float((p.grad - g).norm() / g.norm()) for p, g in pairs]
        self.sizes.append(len(x))
        self.off.append(max(off))


def main() -> None:
    steps, follow = Steps(), Callback(True, STAGES, overhead=math.inf)
    trainer = pl.Trainer(
        max_epochs=3,
        accumulate_grad_batches=2,
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[follow, steps],
    )
    trainer.fit(Module(), DataLoader(DATA, batch_size=4, drop_last=True))
    if trainer.is_global_zero:
        seen = {"sizes": steps.sizes, "off": steps.off}
        noise = {"measured": follow.monitor.counts.measured}
        Path("seen.json").write_text(json.dumps(seen | noise))
    dist.barrier()
    os._exit(0)


if __name__ == "__main__":
    main()
