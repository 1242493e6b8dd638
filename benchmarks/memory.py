"""Memory predicted without running, against what the allocator really hands out.

    python benchmarks/memory.py peaks                  # our own models, many variants
    python benchmarks/memory.py architectures          # transformers configs
    python benchmarks/memory.py boundary [--model cnn] # real out-of-memory, with peers
    python benchmarks/memory.py large                  # a Llama of 7 B parameters

`boundary` gives every trial a process of its own under RLIMIT_DATA; the true largest
batch is found by bisection in the same way. Peers: Lightning's BatchSizeFinder (power,
binsearch) and accelerate's find_executable_batch_size.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import logging
import os
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import rightbatch as rb
from results import write_json
from rightbatch.memory.child_process import data_sizes
from rightbatch.memory.envelope import fit_envelope
from rightbatch.memory.peak import allocator_peak
from rightbatch.memory.step import Step, step_of
from rightbatch.memory.step_law import trace_law
from rightbatch.memory.traced_step import trace_step

MIB = 2**20
CPU = torch.device("cpu")


class Attention(nn.Module):
    """Causal self-attention by torch's own kernel."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        b, t, w = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(b, t, w))


class Block(nn.Module):
    """Attention and MLP, checkpointed if asked."""

    def __init__(self, width: int, saved: bool) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.attention = Attention(width, 4)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.saved = saved

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        if not self.saved:
            return checkpoint(self._forward, x, use_reentrant=False)
        return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norms[0](x))
        return x + self.mlp(self.norms[1](x))


class GPT(nn.Module):
    """Three blocks of width 128 over 2,000 tokens, embedding tied to the head."""

    def __init__(self, saved: bool = True) -> None:
        super().__init__()
        self.tokens = nn.Embedding(2000, 128)
        self.blocks = nn.Sequential(*(Block(128, saved) for _ in range(3)))
        self.head = nn.Linear(128, 2000, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        return self.head(self.blocks(self.tokens(x)))


def mlp() -> nn.Module:
    """Of 2.9 M parameters."""
    sizes = [784, 1024, 1024, 1024]
    layers = [
        part
        for a, b in itertools.pairwise(sizes)
        for part in (nn.Linear(a, b), nn.ReLU())
    ]
    return nn.Sequential(*layers, nn.Linear(1024, 10))


class Residual(nn.Module):
    """Two convolutions with BatchNorm and a way around them."""

    def __init__(self, a: int, b: int, stride: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(a, b, 3, stride, 1, bias=False),
            nn.BatchNorm2d(b),
            nn.ReLU(),
            nn.Conv2d(b, b, 3, 1, 1, bias=False),
            nn.BatchNorm2d(b),
        )
        self.around = nn.Conv2d(a, b, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        return F.relu(self.main(x) + self.around(x))


def cnn() -> nn.Module:
    """A small residual network."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 1, 1, bias=False),
        Residual(16, 16, 1),
        Residual(16, 32, 2),
        Residual(32, 64, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


def classify(model: nn.Module, batch: Any) -> Tensor:
    """Mean cross-entropy."""
    return F.cross_entropy(model(batch[0]), batch[1])


def next_token(model: nn.Module, batch: Any) -> Tensor:
    """Mean cross-entropy over all tokens."""
    return F.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())


def adamw(params: Any) -> torch.optim.Optimizer:
    """As everybody has it."""
    return torch.optim.AdamW(params, lr=1e-3)


def job_named(kind: str, **changes: Any) -> rb.Job:
    """One of the models, on random data of 65,536 examples that share their memory."""
    count = 65536
    y = torch.zeros(count, dtype=torch.long)
    data: dict[str, Any] = {
        "mlp": (torch.zeros(1, 784).expand(count, -1), y),
        "cnn": (torch.zeros(1, 3, 32, 32).expand(count, -1, -1, -1), y),
        "gpt": tuple(
            torch.zeros(1, 64, dtype=torch.long).expand(count, -1) for _ in "xy"
        ),
    }
    models = {"mlp": mlp, "cnn": cnn, "gpt": GPT}
    job = rb.Job(
        model=models[kind],
        loss=next_token if kind == "gpt" else classify,
        data=data[kind],
        optimizer=adamw,
        batch_size=32,
        name=kind,
    )
    return dataclasses.replace(job, **changes)


def real_peak(step: Step, size: int) -> int:
    """Most bytes torch's CPU allocator handed out in a step, state already there."""
    model = step.job.make_model()
    optimizer = step.job.make_optimizer(model)

    def run(size: int) -> None:
        batches = (step.batch(size) for _ in range(step.accumulation))
        step.run(model, optimizer, batches, size)

    run(2)
    return allocator_peak(model, optimizer, lambda: run(size))


Errors = dict[str, list[float]]  # relative, in the order of the sizes


def compared(job: rb.Job, sizes: list[int], accumulation: int = 1) -> Errors:
    """Predicted over real, for every size; calibrated by one real step at 64."""
    step = step_of(job, accumulation)
    started = time.perf_counter()
    law = trace_law(step, CPU, CPU, 2**34)
    seconds = time.perf_counter() - started
    scaled = law.calibrated(64, real_peak(step, 64))
    plain, better = [], []
    for size in sizes:
        real = real_peak(step, size)
        plain.append(law.peak(size) / real - 1)
        better.append(scaled.peak(size) / real - 1)
    row = " ".join(f"{100 * e:+7.3f}" for e in plain)
    print(f"{job.name:34} {seconds:5.2f} s  {row}", flush=True)
    if max(map(abs, plain)) <= 5e-4:
        return {"predicted": plain}
    row = " ".join(f"{100 * e:+7.3f}" for e in better)
    print(f"{'  after one real step of 64':34}          {row}", flush=True)
    return {"predicted": plain, "after one real step": better}


def peaks() -> None:
    """Our own models."""
    sizes = [1, 2, 8, 32, 64, 256, 1024]
    print(f"{'error in %, at B =':34}          " + " ".join(f"{s:7}" for s in sizes))
    sgd: Any = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)}
    foreach: Any = {"optimizer": lambda p: torch.optim.AdamW(p, lr=1e-3, foreach=True)}
    fused: Any = {"optimizer": lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True)}
    errors: dict[str, Errors] = {}

    def compare(
        name: str, at: list[int], accumulation: int = 1, **changes: Any
    ) -> None:
        job = job_named(name.split(",")[0], name=name, **changes)
        errors[name] = compared(job, at, accumulation)

    for name in ("mlp", "gpt", "cnn"):
        usual = sizes[1:] if name == "cnn" else sizes
        variants: tuple[tuple[str, Any], ...] = (
            ("AdamW", {}),
            ("SGD momentum", sgd),
            ("AdamW foreach", foreach),
            ("AdamW fused", fused),
            ("AdamW bf16 autocast", {"precision": "bfloat16"}),
        )
        for variant, changes in variants:
            compare(f"{name}, {variant}", usual, **changes)
        compare(f"{name}, AdamW, 4 pieces", usual[:-1], 4)
    compare("gpt, checkpointing", sizes, model=lambda: GPT(saved=False))
    compare("gpt, clipped gradient", sizes, optimizer=Clipping)
    write_json("memory-peaks", {"batch_sizes": sizes, "errors": errors})


class Clipping(torch.optim.AdamW):
    """Clips before it steps, as many loops do."""

    def step(self, closure: Any = None) -> Any:
        """Clip, then step."""
        torch.nn.utils.clip_grad_norm_(self.param_groups[0]["params"], 1.0)
        return super().step(closure)


def architectures() -> None:
    """Small transformers models from their configs, no weights."""
    import transformers as tf

    tf.logging.set_verbosity_error()
    small = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    words = {"vocab_size": 1000}
    few = {"num_key_value_heads": 2, "intermediate_size": 128}
    gpt2 = tf.GPT2Config(n_embd=64, n_layer=2, n_head=4, **words)
    bert = tf.BertConfig(**small, **words, intermediate_size=256)
    t5 = tf.T5Config(
        d_model=64, d_ff=256, num_layers=2, num_heads=4, d_kv=16, **words,
        decoder_start_token_id=0,
    )  # fmt: skip
    vit = tf.ViTConfig(**small, intermediate_size=256, image_size=32, patch_size=8)
    llama = tf.LlamaConfig(**small, **few, **words)
    mamba = tf.MambaConfig(hidden_size=64, num_hidden_layers=2, **words)
    moe = tf.Qwen3MoeConfig(
        **small, **few, **words, moe_intermediate_size=64, num_experts=4,
        num_experts_per_tok=2, head_dim=16,
    )  # fmt: skip
    resnet = tf.ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[2, 2])
    configs: dict[str, tuple[Any, Any]] = {
        "GPT-2": (tf.GPT2LMHeadModel, gpt2),
        "BERT": (tf.BertForMaskedLM, bert),
        "T5": (tf.T5ForConditionalGeneration, t5),
        "ViT": (tf.ViTForImageClassification, vit),
        "Llama": (tf.LlamaForCausalLM, llama),
        "Mamba": (tf.MambaForCausalLM, mamba),
        "Qwen3-MoE": (tf.Qwen3MoeForCausalLM, moe),
        "ResNet": (tf.ResNetForImageClassification, resnet),
    }
    sizes = [2, 8, 32, 128]
    errors: dict[str, Errors] = {}
    print(f"{'error in %, at B =':34}          " + " ".join(f"{s:7}" for s in sizes))
    for name, (kind, config) in configs.items():
        ids = torch.ones(1, 32, dtype=torch.long).expand(4096, -1)
        if name in ("ViT", "ResNet"):
            inputs: Any = (
                torch.zeros(1, 3, 32, 32).expand(4096, -1, -1, -1),
                torch.zeros(4096, dtype=torch.long),
            )
            keys = ("pixel_values", "labels")
        else:
            inputs, keys = (ids, ids), ("input_ids", "labels")

        def loss(model: nn.Module, batch: Any, keys: Any = keys) -> Tensor:
            return model(**dict(zip(keys, batch, strict=True))).loss

        job = rb.Job(
            model=lambda kind=kind, config=config: kind(config),
            loss=loss,
            data=inputs,
            optimizer=adamw,
            batch_size=8,
            name=name,
        )
        try:
            errors[name] = compared(job, sizes)
        except Exception as error:
            print(f"{name}: {type(error).__name__}: {str(error)[:300]}", flush=True)
    write_json("memory-architectures", {"batch_sizes": sizes, "errors": errors})


def large() -> None:
    """A Llama of 7 B parameters, activation checkpointing, on the CPU."""
    import transformers as tf

    config = tf.LlamaConfig(
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        vocab_size=32000,
        use_cache=False,
    )

    def make() -> nn.Module:
        model = tf.LlamaForCausalLM(config)
        model.gradient_checkpointing_enable()
        return model

    ids = torch.ones(64, 2048, dtype=torch.long)
    job = rb.Job(
        model=make,
        loss=lambda model, batch: model(input_ids=batch[0], labels=batch[1]).loss,
        data=(ids, ids),
        optimizer=adamw,
        batch_size=8,
        precision="bfloat16",
        name="Llama 7B",
    )
    started = time.perf_counter()
    law = fit_envelope(trace_step(step_of(job), (2, 8, 32), cuda=True))
    seconds = time.perf_counter() - started
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{law.parameters / 4e9:.2f} B parameters: {seconds:.1f} s, {held:.2f} GiB")
    largest = {gib: law.largest(gib * 2**30) for gib in (80, 128, 192, 288)}
    for gib, batch in largest.items():
        print(f"{gib} GiB: largest {batch}")
    print("2 sequences:", law.peak(2) / 2**30, "GiB,", law.binding(2))
    write_json(
        "memory-large",
        {"seconds": seconds, "held_gib": held, "largest_by_gib": largest},
    )


# The boundary: every trial in a process of its own


def try_once(name: str, size: int, limit: int) -> bool:
    """Three steps of one size in a fresh process with so much data allowed."""
    done = subprocess.run(
        [
            *(sys.executable, __file__, "one", "--model", name),
            *("--size", str(size), "--limit", str(limit)),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    return done.returncode == 0 and "fits" in done.stdout


def limited(job: rb.Job, limit: int) -> Callable[[int], None]:
    """This process, warm, allowed so much more; then steps of a size, or an error."""
    tiny = nn.Linear(2, 2)
    optimizer = adamw(tiny.parameters())
    tiny(torch.zeros(1, 2)).sum().backward()
    optimizer.step()
    data = data_sizes()["VmData"] + limit
    resource.setrlimit(resource.RLIMIT_DATA, (data, resource.RLIM_INFINITY))

    def steps(size: int) -> None:
        step = step_of(job)
        model = job.make_model()
        optimizer = job.make_optimizer(model)
        for count in (2, size, size):
            step.run(model, optimizer, iter([step.batch(count)]), count)

    return steps


def one(name: str, size: int, limit: int) -> None:
    """The trial in its process."""
    limited(job_named(name), limit)(size)
    print("fits", flush=True)
    os._exit(0)


def true_largest(name: str, limit: int, guess: int) -> int:
    """Bisection to one in a hundred, in fresh processes."""
    low, high = 0, guess
    while try_once(name, high, limit):
        low, high = high, 2 * high
    while high - low > max(1, high // 200):
        middle = (low + high) // 2
        low, high = (middle, high) if try_once(name, middle, limit) else (low, middle)
    return low


def ours(name: str, limit: int) -> dict[str, Any]:
    """In this process, which must survive."""
    started = time.perf_counter()
    law = rb.largest_batch(job_named(name), limit)
    trials = law.certificate.trials
    return {
        "found": law.largest,
        "trials": len(trials),
        "out of memory": sum(t.fits is False for t in trials),
        "seconds": time.perf_counter() - started,
        "predicted": law.envelope.largest(limit),
    }


def peer(tool: str, name: str, limit: int) -> dict[str, Any]:
    """A peer's finder in a process under the limit."""
    started = time.perf_counter()
    done = subprocess.run(
        [
            *(sys.executable, __file__, "peer", "--tool", tool, "--model", name),
            *("--limit", str(limit)),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        return {"found": 0, "error": done.stderr.strip().splitlines()[-1:]}
    return {**json.loads(lines[-1]), "seconds": time.perf_counter() - started}


def run_peer(tool: str, name: str, limit: int) -> None:
    """In its process: the finder works under the limit it is to find."""
    job = job_named(name)
    count = {"trials": 0, "out of memory": 0}
    found = 0
    if tool == "accelerate":
        from accelerate.utils import find_executable_batch_size

        steps = limited(job, limit)

        @find_executable_batch_size(starting_batch_size=8192)
        def search(batch_size: int) -> int:
            count["trials"] += 1
            try:
                steps(batch_size)
            except rb.JobError as error:  # as the tool would see it
                count["out of memory"] += 1
                raise (error.__cause__ or error) from None
            except RuntimeError:
                count["out of memory"] += 1
                raise
            return batch_size

        found = search()
    else:
        found = lightning(tool, job, limit, count)
    print(json.dumps({"found": found, **count}), flush=True)
    os._exit(0)


class Failures(logging.Handler):
    """Counts what Lightning says of batch sizes that failed."""

    def __init__(self, count: dict[str, int]) -> None:
        super().__init__()
        self.count = count

    def emit(self, record: logging.LogRecord) -> None:
        """Hear one line."""
        self.count["out of memory"] += "failed" in record.getMessage()


def lightning(mode: str, job: rb.Job, limit: int, count: dict[str, int]) -> int:
    """Lightning's BatchSizeFinder on the same model and data."""
    import lightning as pl
    from torch.utils.data import DataLoader, TensorDataset

    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").addHandler(Failures(count))
    limited(job, limit)

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.batch_size = job.make_model(), 2

        def training_step(self, batch: Any, index: int) -> Tensor:
            return job.loss(self.model, batch)  # pyrefly: ignore

        def configure_optimizers(self) -> Any:
            return job.make_optimizer(self.model)

        def train_dataloader(self) -> Any:
            count["trials"] += 1
            return DataLoader(TensorDataset(*job.data), batch_size=self.batch_size)

    module = Module()
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    tuner = pl.pytorch.tuner.Tuner(trainer)
    found = tuner.scale_batch_size(
        module, mode=mode, init_val=2, max_val=65536, max_trials=25
    )
    return int(found or 0)


def boundary(names: list[str]) -> None:
    """The table."""
    limits = {"mlp": 200, "gpt": 400, "cnn": 200}
    tables: dict[str, Any] = {}
    for name in names:
        limit = limits[name] * MIB
        own = ours(name, limit)
        true = true_largest(name, limit, max(own["found"], 2))
        print(f"{name}, {limits[name]} MiB: true largest {true}")
        rows = {"rightbatch": own}
        for tool in ("power", "binsearch", "accelerate"):
            rows[tool] = peer(tool, name, limit)
        tables[name] = {"limit_mib": limits[name], "true": true, "tools": rows}
        for tool, row in rows.items():
            share = row["found"] / true
            told = ", ".join(
                f"{k} {v:.1f}" if isinstance(v, float) else f"{k} {v}"
                for k, v in row.items()
            )
            print(f"  {tool:12} {share:6.1%}  {told}", flush=True)
    malloc = os.environ.get("MALLOC_MMAP_THRESHOLD_")
    write_json(
        f"memory-boundary-{'-'.join(names)}",
        {"malloc_mmap_threshold": malloc, "models": tables},
    )


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part")
    parser.add_argument("--model")
    parser.add_argument("--size", type=int)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--tool")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.part == "one":
        one(given.model, given.size, given.limit)
    elif given.part == "peer":
        run_peer(given.tool, given.model, given.limit)
    elif given.part == "boundary":
        boundary([given.model] if given.model else ["mlp", "gpt", "cnn"])
    else:
        {"peaks": peaks, "architectures": architectures, "large": large}[given.part]()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
