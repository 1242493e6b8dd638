"""A job larger than its budget: a transformer of 14 M parameters on 256 bytes.

Its steps take seconds and its run half an hour and more, so there is no grid. `tune` is
asked from the start and from a checkpoint at a third of today's run; what it answers is
held against runs of today's setting and of the plan's, by a plain loop.

    python benchmarks/truth/large.py run --steps 300 --keep-at 100    # today's
    rightbatch tune benchmarks/truth/large.py:job --from third.pt --budget 10m
    python benchmarks/truth/large.py run --from third.pt --batch 8 --lr 4e-4
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from torch import Tensor, nn

import rightbatch as rb
from rightbatch.job.built_in.stdlib_gpt import Block, loss, read_library

CONTEXT, WIDTH, LAYERS, HEADS = 256, 432, 6, 6
HELD_OUT = 32  # sequences
BATCH, RATE, TARGET = 16, 3e-4, 2.48


class Transformer(nn.Module):
    """Predicts each next byte from the bytes before it."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = nn.Embedding(256, WIDTH)
        self.positions = nn.Parameter(0.02 * torch.randn(CONTEXT, WIDTH))
        self.blocks = nn.Sequential(*(Block(WIDTH, HEADS) for _ in range(LAYERS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 256, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(sequences, bytes) integers to (sequences, bytes, 256) logits."""
        return self.head(self.norm(self.blocks(self.bytes(x) + self.positions)))


def sequences() -> tuple[Tensor, Tensor]:
    """Training and held-out sequences of CONTEXT + 1 bytes; whole files held out."""
    train, held_out = (part.flatten() for part in read_library())
    cut = [p[: len(p) // 257 * 257].view(-1, CONTEXT + 1) for p in (train, held_out)]
    return cut[0], cut[1][:HELD_OUT]


TRAIN, HELD = sequences()


def held_out_loss(model: nn.Module) -> float:
    """Of the held-out sequences."""
    return loss(model, (HELD,)).item()


job = rb.Job(
    model=Transformer,
    loss=loss,
    data=(TRAIN,),
    optimizer=lambda params: torch.optim.AdamW(params, lr=RATE),
    batch_size=BATCH,
    evaluate=held_out_loss,
    target=TARGET,
    name="gpt_14m",
    example="sequence of 256 bytes",
)


def run(args: argparse.Namespace) -> None:
    """A plain loop; a line for every evaluation, a file of them at the end."""
    torch.manual_seed(args.seed)
    model = Transformer()
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    if args.start is not None:
        state = torch.load(args.start, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        for group in optimizer.param_groups:
            group["lr"] = args.lr
            group["betas"] = tuple(args.betas or group["betas"])
    order = torch.Generator().manual_seed(args.seed)
    curve, cpu_s = [], 0.0
    for step in range(1, args.steps + 1):
        began = time.process_time()
        rows = torch.randint(len(TRAIN), (args.batch,), generator=order)
        optimizer.zero_grad()
        for piece in rows.split(args.piece):
            (loss(model, (TRAIN[piece],)) * len(piece) / args.batch).backward()
        optimizer.step()
        cpu_s += time.process_time() - began
        if step == args.keep_at:
            states = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(states | {"step": step, "batch_size": args.batch}, args.keep)
        if step % max(160 // args.batch, 1) == 0:
            with torch.no_grad():
                curve.append((step, cpu_s, held_out_loss(model)))
            print(f"{step:6} {cpu_s:8.1f} s {curve[-1][2]:.4f}", flush=True)
            if args.stop and curve[-1][2] <= TARGET:
                break
    if args.out:
        asked = {"batch": args.batch, "lr": args.lr, "seed": args.seed}
        Path(args.out).write_text(json.dumps(asked | {"curve": curve}) + "\n")


def main() -> None:
    """Read the options, train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["run"])
    parser.add_argument("--from", dest="start", type=Path)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--piece", type=int, default=BATCH, help="examples of a pass")
    parser.add_argument("--lr", type=float, default=RATE)
    parser.add_argument("--betas", type=float, nargs=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep-at", type=int, help="step of the checkpoint")
    parser.add_argument("--keep", default="third.pt")
    parser.add_argument("--stop", action="store_true", help="at the target")
    parser.add_argument("--out", help="JSON of the curve")
    run(parser.parse_args())


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
