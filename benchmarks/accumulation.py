"""Is the accumulated gradient that of the whole batch? Ours, accelerate's, Lightning's.

    python benchmarks/accumulation.py                                  # one rank
    torchrun --nproc-per-node 4 benchmarks/accumulation.py             # four

Every tool gets the same micro-batches of the same examples, and is used as its manual
says; the error is the relative L2 distance to the gradient of one pass over everything,
in double. Then what exactness costs: seconds of a step by ours over a plain loop.
"""

from __future__ import annotations

import os
import statistics
import time
import warnings
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import rightbatch as rb
from results import write_json

VOCABULARY, WIDTH, LENGTH = 64, 32, 16
MICRO = 4
CASES = {  # examples of the window on every rank, masked targets
    "even": (16, False),
    "ragged last micro-batch": (14, False),
    "masked tokens": (16, True),
    "masked and ragged": (14, True),
    "short last window": (8, True),
}


class Tagger(nn.Module):
    """An embedding, a hidden layer, and a class for every token."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.hidden = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, x: Tensor) -> Tensor:
        """(sequences, tokens) to (sequences, tokens, classes)."""
        return self.head(F.gelu(self.hidden(self.embedding(x))))


def make_model() -> Tagger:
    """The same everywhere."""
    torch.manual_seed(0)
    return Tagger()


def window(case: str, rank: int) -> list[tuple[Tensor, Tensor]]:
    """The micro-batches of one rank."""
    count, masked = CASES[case]
    generator = torch.Generator().manual_seed(10 + rank)
    x, y = (
        torch.randint(VOCABULARY, (count, LENGTH), generator=generator)
        for _ in range(2)
    )
    if masked:
        lengths = torch.randint(1, LENGTH + 1, (count, 1), generator=generator)
        y[torch.arange(LENGTH) >= lengths] = -100
    return list(zip(x.split(MICRO), y.split(MICRO), strict=True))


def mean_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """As most people write it: the mean over the targets of this micro-batch."""
    return F.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())


def sum_and_count(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    """As ours wants it, where targets are masked."""
    logits = model(batch[0]).flatten(0, 1)
    total = F.cross_entropy(logits, batch[1].flatten(), reduction="sum")
    return total, (batch[1] != -100).sum()


def truth(case: str, world: int) -> Tensor:
    """One pass over every example of every rank, in double."""
    model = make_model().double()
    micros = [m for rank in range(world) for m in window(case, rank)]
    x, y = (torch.cat(parts) for parts in zip(*micros, strict=True))
    mean_loss(model, (x, y)).backward()
    return flat(model)


def flat(model: nn.Module) -> Tensor:
    """All gradients as one vector."""
    return torch.cat(
        [p.grad.flatten().double() for p in model.parameters() if p.grad is not None]
    )


def ours(case: str, rank: int, world: int) -> Tensor:
    """The accumulator, given the whole window."""
    model: nn.Module = make_model()
    if world > 1:
        model = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    step = rb.Accumulator(model, sum_and_count, optimizer, MICRO, check=False)
    x, y = (torch.cat(parts) for parts in zip(*window(case, rank), strict=True))
    step((x, y))
    return flat(model)


def accelerates(case: str, rank: int, world: int) -> Tensor:
    """``accelerator.accumulate`` with the number of micro-batches of a full window."""
    from accelerate import Accelerator

    full = 12 if case == "short last window" else CASES[case][0]
    accelerator = Accelerator(gradient_accumulation_steps=-(-full // MICRO), cpu=True)
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    # Each rank's own window, so that all tools see the same examples.
    model, optimizer = accelerator.prepare(model, optimizer)
    micros = window(case, rank)
    for number, batch in enumerate(micros):
        if number + 1 == len(micros):  # what the end of its own loader does
            accelerator.gradient_state._set_sync_gradients(True)
            accelerator.sync_gradients = True
            accelerator.backward(mean_loss(model, batch))
        else:
            with accelerator.no_sync(model):
                accelerator.backward(mean_loss(model, batch))
    return flat(model)


def lightnings(case: str, rank: int, world: int) -> Tensor:
    """``Trainer(accumulate_grad_batches=...)``, gradients read before the update."""
    import lightning

    full = 12 if case == "short last window" else CASES[case][0]
    found: list[Tensor] = []

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.inner = make_model()

        def training_step(self, batch: Any, index: int) -> Tensor:
            return mean_loss(self.inner, batch)

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            found.append(flat(self.inner))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    trainer = lightning.Trainer(
        max_epochs=1,
        accumulate_grad_batches=-(-full // MICRO),
        accelerator="cpu",
        devices=world,
        strategy="ddp" if world > 1 else "auto",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    micros: Any = window(case, rank)
    loader: Any = torch.utils.data.DataLoader(micros, batch_size=None)
    trainer.fit(Module(), loader)
    return found[-1]


def cost() -> float:
    """Seconds of a step of ours over those of a plain loop with the same pieces."""
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Linear(256, 512), nn.GELU(), nn.Linear(512, 10))]
    models.append(nn.Sequential(nn.Linear(256, 512), nn.GELU(), nn.Linear(512, 10)))
    x, y = torch.randn(256, 256), torch.randint(10, (256,))
    loss = lambda m, b: F.cross_entropy(m(b[0]), b[1])  # ruff: ignore[lambda-assignment]
    optimizers = [torch.optim.AdamW(m.parameters()) for m in models]
    step = rb.Accumulator(models[0], loss, optimizers[0], 64, check=False)

    def plain() -> None:
        optimizers[1].zero_grad()
        for a, b in zip(x.split(64), y.split(64), strict=True):
            (loss(models[1], (a, b)) / 4).backward()
        optimizers[1].step()

    ratios = []
    for _ in range(15):
        times = []
        for run in (lambda: step((x, y)), plain):
            begun = time.process_time()
            for _ in range(40):
                run()
            times.append(time.process_time() - begun)
        ratios.append(times[0] / times[1])
    return statistics.median(ratios)


def main() -> None:
    """The table, on however many ranks."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        dist.init_process_group("gloo")
    rank = dist.get_rank() if world > 1 else 0
    if not rank:
        print(f"{world} rank(s), relative L2 error of the gradient")
        print(f"{'':<26}{'rightbatch':>12}{'accelerate':>12}{'Lightning':>12}")
    tools = {"rightbatch": ours, "accelerate": accelerates, "Lightning": lightnings}
    errors: dict[str, dict[str, float]] = {}
    for case in CASES:
        whole, errors[case] = truth(case, world), {}
        for name, tool in tools.items():
            gradient = tool(case, rank, world)
            errors[case][name] = float((gradient - whole).norm() / whole.norm())
        if not rank:
            cells = "".join(f"{error:>12.1e}" for error in errors[case].values())
            print(f"{case:<26}{cells}", flush=True)
    if world == 1:
        price = cost()
        print(f"a step of ours over a plain loop's: {price:.3f} x CPU time")
        write_json("accumulation", {"errors": errors, "cpu_over_plain_loop": price})
    else:
        if not rank:
            write_json(f"accumulation-{world}-ranks", {"errors": errors})
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
