"""A loop with Accelerate, alone or on several ranks, whose every step is recorded."""

import copy
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import rightbatch as rb
from rightbatch.integrations.accelerate import follow

EXAMPLES = 208  # 26 micro-batches of 8: no batch of the stages divides an epoch
STAGES = rb.schedules.Stages(((0, 8), (72, 24), (264, 16), (390, 40)))


class Loop:
    """Two layers in float64 and a scheduler, through the data in its order."""

    def __init__(self, micro: int, lr: float = 0.02, **options: Any) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(EXAMPLES, 5, generator=generator, dtype=torch.float64)
        self.y = self.x.square().sum(1, keepdim=True)
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1)).double()
        self.reference = copy.deepcopy(net)  # no monitor watches it
        sgd = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
        loader = DataLoader(TensorDataset(self.x, self.y), micro, drop_last=True)
        self.accelerator = Accelerator(cpu=True)
        ranks = self.accelerator.num_processes
        # In Accelerate's steps, one a process: the same examples on any number of them.
        halving = torch.optim.lr_scheduler.StepLR(sgd, step_size=20 * ranks, gamma=0.5)
        self.net, self.sgd, self.loader, scheduler = self.accelerator.prepare(
            net, sgd, loader, halving
        )
        options = dict[str, Any](schedule=STAGES, scheduler=scheduler) | options
        if options.get("monitor"):
            options["monitor"] = rb.NoiseMonitor(self.net, self.sgd, float("inf"))
        self.batches = follow(
            self.accelerator, self.sgd, loader=self.loader, batch_size=8, **options
        )
        self.steps: list[dict[str, Any]] = []  # batch, gradient's error and rate

    def epoch(self, until: float = float("inf")) -> None:
        """What is left of it, or until so many examples have been seen."""
        done = self.batches.micro_batches_in_epoch
        epoch = self.accelerator.skip_first_batches(self.loader, done)
        place = done * self.batches._micro  # of the step that is being made
        for x, y in epoch:
            with self.accelerator.accumulate(self.net):
                loss = nn.functional.mse_loss(self.net(x), y)
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    size = self.batches.batch_size
                    self.record(slice(place, place + size))
                    place += size
                self.sgd.step()
                self.batches.step()
                self.sgd.zero_grad()
            if self.batches.examples >= until:
                return

    def record(self, step: slice) -> None:
        """Hold the step's gradient against that of its examples in one pass."""
        network = self.accelerator.unwrap_model(self.net)
        self.reference.load_state_dict(network.state_dict())
        loss = nn.functional.mse_loss(self.reference(self.x[step]), self.y[step])
        large = torch.autograd.grad(loss, list(self.reference.parameters()))
        wrong = [p.grad - g for p, g in zip(network.parameters(), large, strict=True)]
        error = torch.cat([w.flatten() for w in wrong]).norm()
        error /= torch.cat([g.flatten() for g in large]).norm()
        rate = self.sgd.param_groups[0]["lr"]
        row = {"batch": step.stop - step.start, "error": float(error)}
        self.steps.append(row | {"lr": rate})

    def weights(self) -> list[float]:
        return [v for p in self.net.parameters() for v in p.flatten().tolist()]


if __name__ == "__main__":  # on every rank: micro-batches of 4
    loop = Loop(4, monitor=True)
    loop.epoch()
    loop.epoch()
    loop.epoch()
    rank = loop.accelerator.process_index
    row = {"steps": loop.steps, "weights": loop.weights(), "log": loop.batches.log()}
    Path(sys.argv[1], f"rank-{rank}.json").write_text(json.dumps(row))
    loop.accelerator.wait_for_everyone()
    sys.stdout.flush()
    os._exit(0)
