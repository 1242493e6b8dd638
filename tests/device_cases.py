"""Jobs on a device, small on the CPU and of a real size on a GPU, and its clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rightbatch as rb
from rightbatch.job.built_in.stdlib_gpt import Block, read_library


def large(device: torch.device) -> bool:
    """Whether the device is there to be filled; the CPU only proves the test."""
    return device.type == "cuda"


def classifier_job(device: torch.device, **changes: Any) -> rb.Job:
    """An MLP whose middle is a band of the inputs; noise in a tenth of the labels."""
    width, count = (4096, 65_536) if large(device) else (64, 4096)
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(count, 64, generator=draws)
    y = (x[:, :8].sum(1).abs() < 2).long()
    y[: count // 10] = torch.randint(2, (count // 10,), generator=draws)
    held = x[-512:].to(device), y[-512:].to(device)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch[0]).float(), batch[1])

    given: dict[str, Any] = {
        "model": lambda: nn.Sequential(
            nn.Linear(64, width),
            nn.GELU(),
            nn.Linear(width, width),
            nn.GELU(),
            nn.Linear(width, 2),
        ),
        "loss": loss,
        "data": (x, y),
        "optimizer": lambda params: torch.optim.AdamW(params, lr=1e-3),
        "batch_size": 64,
        "evaluate": lambda model: loss(model, held).item(),
        "target": 0.35,
        "device": device,
    }
    return rb.Job(**{**given, **changes})


class Gpt(nn.Module):
    """GPT-2's shape, the head tied to the embedding; on the CPU a tiny one."""

    def __init__(self, width: int, heads: int, layers: int, vocab: int, ctx: int):
        super().__init__()
        self.tokens = nn.Embedding(vocab, width)
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.positions = nn.Parameter(0.02 * torch.randn(ctx, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """(sequences, tokens) integers to logits."""
        y = self.norm(self.blocks(self.tokens(x) + self.positions[: x.shape[1]]))
        return y @ self.tokens.weight.T


GPT2 = (768, 12, 12, 50_257, 1024)  # 124 M parameters


def gpt_job(device: torch.device) -> rb.Job:
    """On the bytes of Python's library, with GPT-2's vocabulary."""
    shape = GPT2 if large(device) else (16, 2, 1, 256, 32)
    context = shape[-1]
    text = read_library()[0].flatten()
    rows = text[: len(text) // context * context].view(-1, context)
    rows = rows if large(device) else rows[:2048]

    def loss(model: nn.Module, batch: Any) -> Tensor:
        tokens = batch[0].long()
        logits = model(tokens[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())

    return rb.Job(
        model=lambda: Gpt(*shape),
        loss=loss,
        data=(rows,),
        optimizer=lambda params: torch.optim.AdamW(params, lr=6e-4, betas=(0.9, 0.95)),
        batch_size=16,
        precision="bfloat16" if large(device) else "float32",
        device=device,
        name="gpt_124m",
    )


def seconds(device: torch.device, work: Callable[[], object]) -> float:
    """By the device's own events; on the CPU its time, which others do not take."""
    if not large(device):
        started = time.process_time()
        work()
        return time.process_time() - started
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    begin.record()
    work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000
