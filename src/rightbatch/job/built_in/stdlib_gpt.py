"""A byte-level causal transformer on the source of the running Python's library."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rightbatch.core.errors import JobError
from rightbatch.job.job import Job

CONTEXT = 64  # bytes per sequence
WIDTH, LAYERS, HEADS = 64, 2, 4
HELD_OUT_FILE = 20  # one file in so many is held out, whole
HELD_OUT_SEQUENCES = 128
# Today's batch is nanoGPT's for its character-level Shakespeare. The learning rate is
# the best for that batch among powers of two times 1e-3 [measured:
# benchmarks/truth/grid.py].
BATCH_SIZE, LEARNING_RATE = 64, 4e-3
TARGET = 2.1  # nats per byte on held-out files


class Block(nn.Module):
    """Causal self-attention and an MLP, each after a layer norm, each added."""

    def __init__(self, width: int = WIDTH, heads: int = HEADS) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(sequences, bytes, width) to the same shape."""
        n, length, width = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(n, length, 3, self.heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(n, length, width))
        return x + self.mlp(self.mlp_norm(x))


class ByteTransformer(nn.Module):
    """Predicts each next byte from the bytes before it."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = nn.Embedding(256, WIDTH)
        nn.init.normal_(self.bytes.weight, std=0.02)
        self.positions = nn.Parameter(0.02 * torch.randn(CONTEXT, WIDTH))
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 256, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(sequences, bytes) integers to (sequences, bytes, 256) logits."""
        return self.head(self.norm(self.blocks(self.bytes(x) + self.positions)))


def loss(model: nn.Module, batch: tuple[Tensor]) -> Tensor:
    """Mean cross-entropy per byte, in nats."""
    text = batch[0].long()
    logits = model(text[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten())


def read_library() -> tuple[Tensor, Tensor]:
    """Training and held-out sequences of ``CONTEXT + 1`` bytes, uint8 (n, 65).

    Tests and installed packages are left out; some 10 MB remain.

    Raises:
        JobError: This Python ships no sources to read.
    """
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"site-packages", "dist-packages", "test", "tests"}
    files = [
        path
        for path in sorted(root.rglob("*.py"))
        if not skipped & set(path.relative_to(root).parts)
    ]
    kept = b"".join(p.read_bytes() for i, p in enumerate(files) if i % HELD_OUT_FILE)
    held = b"".join(p.read_bytes() for p in files[::HELD_OUT_FILE])
    if min(len(kept), len(held)) < (CONTEXT + 1) * HELD_OUT_SEQUENCES:
        raise JobError(
            "this Python carries too little source text for the job 'stdlib_gpt'",
            seen=f"{len(files)} .py files, {len(kept) + len(held)} bytes in {root}",
            fix="run it with a Python that ships its library as .py files",
        )
    order = torch.randperm(
        len(held) // (CONTEXT + 1), generator=torch.Generator().manual_seed(0)
    )
    return _sequences(kept), _sequences(held)[order[:HELD_OUT_SEQUENCES]]


def _sequences(text: bytes) -> Tensor:
    count = len(text) // (CONTEXT + 1)
    flat = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    return flat[: count * (CONTEXT + 1)].view(count, CONTEXT + 1)


def make_job() -> Job:
    """The job, with the library read."""
    train, held_out = read_library()
    return Job(
        model=ByteTransformer,
        loss=loss,
        data=(train,),
        optimizer=lambda params: torch.optim.AdamW(
            params, lr=LEARNING_RATE, betas=(0.9, 0.95)
        ),
        batch_size=BATCH_SIZE,
        evaluate=lambda model: loss(model, (held_out,)).item(),
        target=TARGET,
        name="stdlib_gpt",
        example=f"sequence of {CONTEXT} bytes",
    )
