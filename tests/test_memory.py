"""Memory: the law is exact, its inversion too, and trials harm nobody."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import rightbatch as rb
from rightbatch.core import machine
from rightbatch.memory.boundary import Search, StepMaker
from rightbatch.memory.budget import budget_for
from rightbatch.memory.envelope import Envelope, Segment, fit_envelope, fit_points
from rightbatch.memory.peak import allocator_peak
from rightbatch.memory.points import MemoryPoint
from rightbatch.memory.step_law import token_law, trace_law
from rightbatch.memory.traced_step import CannotTrace, Probe, probes_of
from rightbatch.memory.trial import Trial, try_step
from rightbatch.training.training import Training, accumulate

CPU = torch.device("cpu")
MIB, HERE = 2**20, Path(__file__).parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


class Mlp(nn.Module):
    """Tied weights, a buffer, dropout, and a block that can be checkpointed."""

    def __init__(self, saved: bool = True) -> None:
        super().__init__()
        self.first = nn.Linear(40, 64)
        self.block = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64))
        self.again = nn.Linear(64, 64)
        self.again.weight = self.block[0].weight  # pyrefly: ignore
        self.last = nn.Linear(64, 5)
        self.norm = nn.LayerNorm(64)
        self.register_buffer("count", torch.zeros(3))
        self.saved = saved

    def forward(self, x: Tensor) -> Tensor:
        y = F.dropout(torch.relu(self.first(x)), 0.1)
        if self.saved:
            y = self.block(y)
        else:
            y = checkpoint(self.block, y, use_reentrant=False)
        return self.last(self.norm(self.again(y)))


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(50, 32)
        self.qkv = nn.Linear(32, 96)
        self.head = nn.Linear(32, 50)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (4, 8)).transpose(1, 2)
            for part in self.qkv(self.tokens(x)).chunk(3, -1)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.head(y.transpose(1, 2).flatten(2))


def classify(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]).flatten(0, -2), batch[1].flatten())


def adamw(params: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=1e-3)


def job_of(kind: str = "mlp", count: int = 4096, **changes: Any) -> rb.Job:
    data: tuple[Tensor, ...] = (
        torch.zeros(1, 40).expand(count, -1),
        torch.zeros(count, dtype=torch.long),
    )
    if kind == "tagger":
        data = tuple(
            torch.zeros(1, 12, dtype=torch.long).expand(count, -1) for _ in "xy"
        )
    job = rb.Job(
        model=Tagger if kind == "tagger" else Mlp,
        loss=classify,
        data=data,
        optimizer=adamw,
        batch_size=16,
    )
    return dataclasses.replace(job, **changes)


def real_peak(job: rb.Job, size: int, pieces: int = 1) -> int:
    """By torch's own allocator events of a real step, the state already there."""
    training, make = Training.start(job), StepMaker(job, 1).batch

    def step(size: int, pieces: int) -> None:
        parts = (make(size) for _ in range(pieces))
        accumulate(job, training.model, training.optimizer, parts, [size] * pieces)
        training.optimizer.step()

    step(2, 1)
    return allocator_peak(training, lambda: step(size, pieces))


def law_of(job: rb.Job, pieces: int = 1) -> Envelope:
    return trace_law(StepMaker(job, pieces), CPU, CPU, 2**33)


class Clipping(torch.optim.AdamW):
    def step(self, closure: Any = None) -> Any:
        torch.nn.utils.clip_grad_norm_(self.param_groups[0]["params"], 1.0)
        return super().step(closure)


@pytest.mark.parametrize(
    ("kind", "changes", "pieces"),
    [
        ("mlp", {}, 1),
        ("mlp", {}, 3),
        ("tagger", {}, 1),
        ("mlp", {"optimizer": lambda p: torch.optim.SGD(p, lr=0.1)}, 1),
        ("mlp", {"optimizer": lambda p: torch.optim.AdamW(p, foreach=True)}, 1),
        ("mlp", {"optimizer": lambda p: torch.optim.AdamW(p, fused=True)}, 1),
        ("mlp", {"optimizer": lambda p: Clipping(p, lr=1e-3)}, 1),
        ("tagger", {"precision": "bfloat16"}, 1),
        ("mlp", {"model": lambda: Mlp(saved=False)}, 1),
        ("mlp", {"model": Mlp()}, 1),
        ("mlp", {"loss": lambda m, b: (classify(m, b) * len(b[0]), len(b[0]))}, 2),
    ],
)
def test_the_law_is_the_allocators_peak(
    kind: str, changes: dict[str, Any], pieces: int
) -> None:
    """Within 0.5 % at every batch; with checkpointing 1 % (a few small blocks).

    Under autocast a kernel takes some fixed 8 KiB for itself.
    """
    scratch = 16 * 1024 if "precision" in changes else 0
    job = job_of(kind, **changes)
    law = law_of(job, pieces)
    assert law.method == "traced at 2, 8, 32 examples"
    for size in (1, 3, 16, 200):
        real = real_peak(job, size, pieces)
        assert law.peak(size) == pytest.approx(real, rel=0.01, abs=scratch)
        if changes.get("model") is None or isinstance(changes["model"], nn.Module):
            assert law.peak(size) == pytest.approx(real, rel=0.005, abs=scratch)


def test_examples_that_meet_make_a_square() -> None:
    """Contrastive logits are of every pair: affine in B would be far too low."""

    def contrast(model: nn.Module, batch: Any) -> Tensor:
        z = model(batch[0])
        return F.cross_entropy(z @ z.T, torch.arange(len(z)))

    job = job_of(loss=contrast)
    law = law_of(job)
    assert law.binding(2000).square > 0
    assert law.peak(2000) == pytest.approx(real_peak(job, 2000), rel=0.005)


def test_what_looks_into_its_tensors_is_traced_on_small_real_steps() -> None:
    def looks(model: nn.Module, batch: Any) -> Tensor:
        loss = classify(model, batch)
        return loss if loss.item() < 1e9 else loss * 2

    job = job_of(loss=looks)
    law = law_of(job)
    assert "run for it" in law.method
    assert law.peak(300) == pytest.approx(real_peak(job, 300), rel=0.005)


def test_a_compiled_model_is_measured_on_real_steps() -> None:
    job = job_of(model=lambda: torch.compile(Mlp(), backend="eager"))
    law = law_of(job)
    assert "real steps of 8, 16, 64, 128" in law.method
    assert "compiled" in law.method
    assert law.peak(16) == pytest.approx(real_peak(job, 16), rel=0.02)


def test_a_loss_that_needs_more_examples_is_traced_at_more() -> None:
    def topk(model: nn.Module, batch: Any) -> Tensor:
        return model(batch[0]).topk(10, dim=0).values.mean()

    law = law_of(job_of(loss=topk))
    assert law.method == "traced at 16, 64, 128 examples"


def test_a_step_that_runs_at_no_size_is_refused() -> None:
    def never(model: nn.Module, batch: Any) -> Tensor:
        return model(batch[0]).topk(1000, dim=0).values.mean()

    with pytest.raises(rb.JobError, match="runs at no size from 2 to 128") as caught:
        rb.largest_batch(job_of(loss=never), 64 * MIB)
    assert "selected index k out of range" in str(caught.value)


def test_nothing_of_the_job_is_touched() -> None:
    model = Mlp()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    rb.largest_batch(job_of(model=model), 32 * MIB)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_large_model_costs_no_memory() -> None:
    """5 x 10^8 parameters: 2 GiB, 8 with gradients and state; traced in 64 MiB."""
    job = job_of(
        model=lambda: nn.Sequential(nn.Linear(40, 10**7), nn.Linear(10**7, 5)),
        loss=lambda m, b: m(b[0]).mean(),
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    law = rb.largest_batch(job, 100 * 2**30, verify=False)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024
    assert law.envelope.parameters == 4 * (46 * 10**7 + 5)


# The law itself


numbers = st.floats(0, 1e6, allow_nan=False)
segments = st.lists(
    st.builds(
        Segment,
        constant=numbers,
        linear=st.floats(0, 1e4),
        square=st.sampled_from([0.0, 0.0, 1e-3, 2.0]),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=200, deadline=None)
@given(segments, st.floats(1, 1e8))
def test_the_largest_batch_is_the_last_within_the_limit(
    parts: list[Segment], limit: float
) -> None:
    law = Envelope(segments=tuple(parts), method="made up")
    found = law.largest(limit)
    slack = 1e-9 * limit  # of rounding in the roots
    if found:
        assert law.peak(found) <= limit + slack
    if found < 2**30:
        assert law.peak(found + 1) > limit - slack


@settings(max_examples=100, deadline=None)
@given(segments)
def test_changes_are_where_another_segment_is_highest(parts: list[Segment]) -> None:
    law = Envelope(segments=tuple(parts), method="made up")
    changes = law.changes(500)
    for batch in (1, 2, 7, 63, 64, 65, 499):
        own = [segment for first, segment in changes if first <= batch][-1]
        assert own.at(batch) == pytest.approx(law.peak(batch), rel=1e-9, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 300))
def test_fitting_keeps_every_operation_that_binds(seed: int, count: int) -> None:
    """Against the maximum over all of them, at batches nobody has traced."""
    random = np.random.default_rng(seed)
    a = random.integers(0, 10**6, count)
    b = random.integers(0, 10**4, count)
    c = np.where(random.random(count) < 0.1, random.integers(0, 50, count), 0)
    probes = [
        Probe(
            micro_batch=size,
            operations=tuple(map(str, range(count))),
            places=("forward",) * count,
            bytes=tuple(int(x) for x in a + b * size + c * size * size),
            wasted=(0,) * count,
            parameters=0,
            buffers=0,
            gradients=0,
            state=0,
            unit=0,
        )
        for size in (2, 4, 8)
    ]
    law = fit_envelope(probes)
    for batch in (1, 5, 100, 3001, 77_777, 10**6):
        truth = float((a + b * batch + c * batch * batch).max())
        assert law.peak(batch) == pytest.approx(truth, rel=1e-4)


def test_measured_peaks_are_joined_by_lines_that_are_never_too_low() -> None:
    def peak(b: int) -> int:
        return max(100 + b, 40 + 3 * b)

    law = fit_points(
        [MemoryPoint(micro_batch=b, peak_memory_bytes=peak(b)) for b in (1, 8, 64, 128)]
    )
    assert all(law.peak(b) >= peak(b) - 1e-9 for b in range(1, 4097))
    assert law.peak(4096) == pytest.approx(peak(4096))
    with pytest.raises(rb.UnidentifiedError, match="at least 2"):
        fit_points([MemoryPoint(micro_batch=1, peak_memory_bytes=1)])


def test_for_cuda_blocks_are_rounded_and_updates_are_made_at_once() -> None:
    step = StepMaker(job_of(), 1)
    plain = fit_envelope(probes_of(step.job, step.batch, (2, 4, 8)))
    cuda = fit_envelope(probes_of(step.job, step.batch, (2, 4, 8), cuda=True))
    forced = job_of(optimizer=lambda p: torch.optim.AdamW(p, foreach=True))
    at_once = fit_envelope(probes_of(forced, step.batch, (2, 4, 8)))
    updates = [s for s in cuda.segments if "foreach" in s.operation]
    assert updates
    assert at_once.peak(64) <= cuda.peak(64) <= at_once.peak(64) + 512 * 200
    assert cuda.peak(1) > plain.peak(1)


def test_several_ranks_add_buckets_or_share_the_weights() -> None:
    law = law_of(job_of())
    ddp = law.on_ranks(4, sharded=False)
    assert ddp.peak(1000) == law.peak(1000) + law.gradients
    shared = law.on_ranks(4, sharded=True)
    assert shared.parameters == round(law.parameters / 4)
    assert "modelled" in shared.method
    with pytest.raises(rb.SettingError, match="several ranks"):
        rb.largest_batch(job_of(), 64 * MIB, sharded=True)


# Trials


def trial(job: rb.Job, size: int, **more: Any) -> Trial:
    return try_step(job, StepMaker(job, 1).batch, size, CPU, **more)


def test_a_trial_finds_the_limit_and_leaves_this_process_alone() -> None:
    job = job_of(model=lambda: nn.Sequential(nn.Linear(40, 4096), nn.Linear(4096, 5)))
    before = resource.getrlimit(resource.RLIMIT_DATA)
    assert trial(job, 64, limit=200 * MIB).fits
    large = trial(job, 200_000, limit=200 * MIB)
    assert large.fits is False
    assert "alloc" in large.seen
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    torch.zeros(50 * MIB)  # 200 MiB more than the limit of the child
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)  # nobody is left behind


def test_what_a_trial_took_is_what_it_needs() -> None:
    """Within 10 % of the tensors where malloc gives back, and a fixed part."""
    job = job_of(model=lambda: nn.Sequential(nn.Linear(40, 8192), nn.Linear(8192, 5)))
    took = [trial(job, size, exact=True) for size in (500, 2500)]
    grown = took[1].taken - took[0].taken
    asked = took[1].allocated - took[0].allocated
    assert 0.9 * asked < grown < 2.5 * asked


@pytest.mark.parametrize("way", ["raises", "killed", "hangs"])
def test_a_trial_that_goes_wrong_is_told(way: str) -> None:
    parent = os.getpid()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        assert os.getpid() != parent
        if way == "raises":
            raise ValueError("not today")
        if way == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(30)
        return classify(model, batch)

    found = trial(job_of(loss=loss), 4, patience_s=2.0)
    assert found.fits is (False if way == "killed" else None)
    seen = {"raises": "not today", "killed": "ended by", "hangs": "took more than 2 s"}
    assert seen[way] in found.seen


@pytest.mark.parametrize("tax", [1.0, 1.2, 1.9])
@pytest.mark.parametrize("fixed", [0, 25 * MIB])
@pytest.mark.parametrize("scratch", [1.0, 1.12])
@pytest.mark.parametrize("hoards", [True, False])
def test_four_trials_find_the_boundary(
    tax: float, fixed: int, scratch: float, hoards: bool, monkeypatch: Any
) -> None:
    """A made-up process that takes ``fixed + tax * scratch * peak``: 97 % of it.

    Where malloc is said to give back (``hoards`` False) it does: tax 1.
    """
    tax = tax if hoards else 1.0
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    if not hoards:
        monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
    limit, law = (
        200 * MIB,
        Envelope(
            segments=(
                Segment(constant=20 * MIB, linear=1000),
                Segment(constant=MIB, linear=40_000),
            ),
            method="made up",
        ),
    )

    def taken(size: int) -> float:
        return fixed + tax * scratch * law.peak(size)

    class Steps:
        job = job_of(count=10**6)
        patience_s = 60.0
        trials: list[Trial] = []  # ruff: ignore[mutable-class-default]

        def trial(self, size: int, device: Any, limit: float, exact: bool) -> Trial:
            fits = taken(size) <= limit
            found = Trial(
                micro_batch=size,
                fits=fits,
                taken=round(taken(size)) if fits else 0,
                allocated=round(scratch * law.peak(size)) if fits and exact else 0,
            )
            self.trials.append(found)
            return found

    steps: Any = Steps()
    steps.trials = []
    search = Search(steps, CPU, law, limit, lambda text: None)
    assert search.run() == ""
    true = max(b for b in range(1, 6000) if taken(b) <= limit)
    assert search.best is not None
    assert len(steps.trials) <= 4
    assert search.best.micro_batch >= 0.97 * true


def test_steps_that_would_take_too_long_are_not_tried() -> None:
    """Made-up steps of 1 ms an example: the first 7,000 or so fit into 10 seconds."""
    law = Envelope(segments=(Segment(constant=0, linear=6_000),), method="made up")

    class Steps:
        job = job_of(count=10**6)
        patience_s = 10.0
        trials: list[Trial] = []  # ruff: ignore[mutable-class-default]

        def trial(self, size: int, device: Any, limit: float, exact: bool) -> Trial:
            found = Trial(
                micro_batch=size, fits=True, taken=6_000 * size, seconds=size / 1000
            )
            self.trials.append(found)
            return found

    steps: Any = Steps()
    search = Search(steps, CPU, law, 100 * MIB, lambda text: None)
    why = search.run()
    assert "patience" in why
    assert len(steps.trials) == 1
    assert search.best is steps.trials[0]


def test_a_step_that_hangs_ends_the_search_and_leaves_a_prediction() -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        if len(batch[0]) > 1000 and type(batch[0]) is Tensor:  # no traced one
            time.sleep(60)
        return classify(model, batch)

    wide = job_of(
        model=lambda: nn.Sequential(nn.Linear(40, 4096), nn.Linear(4096, 5)),
        loss=loss,
        count=10**6,
    )
    law = rb.largest_batch(wide, 100 * MIB, patience_s=2.0)
    assert "took more than 2 s" in law.certificate.why
    assert law.certificate.confidence == "predicted"
    assert law.largest > 1000


# From end to end


def test_the_largest_batch_is_verified_in_a_process_under_the_limit() -> None:
    job = job_of(model=lambda: nn.Sequential(nn.Linear(40, 4096), nn.Linear(4096, 5)))
    law = rb.largest_batch(dataclasses.replace(job), 40 * MIB)
    assert law.certificate.confidence == "verified"
    assert len(law.certificate.trials) <= 4
    assert law.certificate.taken_bytes <= 40 * MIB
    assert trial(job, law.largest, limit=44 * MIB).fits  # malloc is not exact
    assert law.binding.operation.startswith("aten.")
    assert "verified" in str(law)


def test_a_data_set_smaller_than_memory_is_the_limit() -> None:
    law = rb.largest_batch(job_of(count=100), 2**30)
    assert law.largest == 100
    assert law.certificate.confidence == "verified"


def test_a_budget_below_the_weights_says_so_with_the_number() -> None:
    with pytest.raises(rb.SettingError, match="not even one example") as caught:
        rb.largest_batch(job_of(), 1000)
    weights = law_of(job_of()).parameters
    assert f"{weights / MIB:.3g} MiB" in str(caught.value)


class Sentences:
    """Lists of words of very different length."""

    def __len__(self) -> int:
        return 500

    def __getitem__(self, index: int) -> Tensor:
        return torch.zeros(200 if index == 123 else 5 + index % 7)


def padded(examples: list[Tensor]) -> Tensor:
    return nn.utils.rnn.pad_sequence(examples, batch_first=True).unsqueeze(-1)


def test_the_longest_example_is_what_is_measured() -> None:
    def job(data: Any) -> rb.Job:
        return rb.Job(
            model=lambda: nn.Sequential(nn.Linear(1, 64), nn.Linear(64, 1)),
            loss=lambda m, b: m(b).square().mean(),
            data=data,
            optimizer=adamw,
            batch_size=8,
            collate=padded,
        )

    data = Sentences()
    law = rb.largest_batch(job(data), 30 * MIB, verify=False)
    assert "number" in law.example
    wide = max(len(data[i]) for i in range(0, 500, 1))
    assert wide == 200
    seen = max(len(data[i]) for i in range(0, 500, 500 // 256))
    per_example = law.envelope.binding(1000).linear
    assert per_example >= seen * 64 * 4


def test_margin_and_accumulation_leave_less() -> None:
    job, limit = job_of(count=10**6), 30 * MIB
    plain = rb.largest_batch(job, limit, verify=False).largest
    kept = rb.largest_batch(job, limit, verify=False, margin=0.1)
    pieces = rb.largest_batch(job, limit, verify=False, accumulation=3).largest
    assert kept.budget.bytes == pytest.approx(0.9 * limit, rel=1e-6)
    assert kept.largest < plain
    assert pieces <= plain


@pytest.mark.parametrize(
    "wrong",
    [
        {"memory": -1.0},
        {"memory": math.nan},
        {"memory": 2**30, "margin": 1.0},
        {"memory": 2**30, "accumulation": 0},
        {"memory": 2**30, "ranks": 0},
        {"device": "mps"},
    ],
)
def test_bad_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(rb.SettingError):
        rb.largest_batch(job_of(), verify=False, **wrong)


# Budgets


def test_a_container_is_asked_before_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path)
    assert machine.container_memory() is None
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory/memory.limit_in_bytes").write_text("9223372036854771712\n")
    (tmp_path / "memory/memory.usage_in_bytes").write_text("5\n")
    assert machine.container_memory() is None  # v1's way of saying: no limit
    (tmp_path / "memory/memory.limit_in_bytes").write_text("1000000\n")
    assert machine.container_memory() == 999_995
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("7\n")
    assert machine.container_memory() == 999_995
    (tmp_path / "memory.max").write_text("500000\n")
    assert machine.container_memory() == 499_993
    budget = budget_for(CPU)
    assert (budget.total, budget.source) == (499_993, "left to this container")
    assert budget.bytes == 499_993 - 49_999
    assert machine.free_memory_bytes() == 499_993


def test_the_terms_of_a_budget_add_up() -> None:
    budget = budget_for(torch.device("cuda"), 80e9, margin=0.1)
    names = [t.name for t in budget.terms]
    assert names == [
        "CUDA context",
        "cuBLAS workspace",
        "allocator's reserve",
        "margin for longer examples",
    ]
    assert budget.bytes == 80_000_000_000 - sum(t.bytes for t in budget.terms)
    assert len(budget.lines()) == len(names) + 2


def test_tracing_complains_in_one_error() -> None:
    step = StepMaker(job_of(loss=lambda m, b: m(b[0]).sum() * float(b[1].sum())), 1)
    with warnings.catch_warnings(), pytest.raises(CannotTrace, match="without running"):
        warnings.simplefilter("error")
        probes_of(step.job, step.batch, (2, 4, 8))


# Length


def test_tokens_at_any_length() -> None:
    """Traced at three lengths; at others, shorter and longer, as a real step."""
    job = job_of("tagger")
    law = token_law(job, (4, 8, 12))
    for length, size in ((6, 40), (12, 9), (24, 30), (100, 3)):
        data = tuple(torch.zeros(64, length, dtype=torch.long) for _ in "xy")
        real = real_peak(dataclasses.replace(job, data=data), size)
        # Attention takes some 50 KiB for itself at the largest length.
        peak = law.at(length).peak(size)
        assert peak == pytest.approx(real, rel=0.005, abs=64 * 1024)
    limit = 8 * MIB
    found = [law.largest(limit, length) for length in (4, 16, 64)]
    assert found[0] > 3.5 * found[1] > 12 * found[2]


def test_a_batch_without_lengths_is_refused() -> None:
    with pytest.raises(rb.SettingError, match="no axis of length"):
        token_law(job_of(data=(torch.zeros(9), torch.zeros(9))))
    with pytest.raises(rb.SettingError, match="three different lengths"):
        token_law(job_of("tagger"), (4, 4, 8))


# What went wrong once


def remembering(way: str) -> rb.Job:
    cache: dict[int, Tensor] = {}

    def masked(model: nn.Module, batch: Any) -> Tensor:
        ones = cache.setdefault(0, torch.ones(1))
        return classify(model, batch) * ones[0]

    if way == "a cached mask":
        return job_of(loss=masked)
    made = Mlp()
    return job_of(model=lambda: made)


@pytest.mark.parametrize("way", ["a cached mask", "a model made once"])
def test_what_the_job_remembers_does_not_become_fake(way: str) -> None:
    from torch._subclasses.fake_tensor import FakeTensor

    job = remembering(way)
    law = rb.largest_batch(job, 64 * MIB)
    assert law.certificate.confidence == "verified"
    model = job.make_model()
    loss = job.loss(model, tuple(t[:4] for t in job.data))
    assert not isinstance(loss, FakeTensor)
    assert not any(isinstance(p.grad, FakeTensor) for p in model.parameters())


def test_a_job_with_a_device_is_traced_without_being_made() -> None:
    job = job_of(
        model=lambda: nn.Sequential(nn.Linear(40, 10**7), nn.Linear(10**7, 5)),
        loss=lambda m, b: m(b[0]).mean(),
        device="cpu",
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    law = rb.largest_batch(job, 100 * 2**30, verify=False)
    assert law.envelope.method == "traced at 2, 8, 32 examples"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


class Tagging(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.LSTM(40, 32, batch_first=True)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cells(x.unsqueeze(1).expand(-1, 6, -1))[0][:, -1])


@pytest.mark.parametrize("kind", ["recurrent", "a part of the batch"])
def test_what_is_no_square_is_not_called_one(kind: str) -> None:
    """Workspaces that grow in steps, and 32 examples of any batch: within 10 %."""
    job = job_of(model=Tagging)
    if kind != "recurrent":
        job = job_of(loss=lambda m, b: classify(m, (b[0][:32], b[1][:32])))
    law = law_of(job)
    assert law.peak(1500) == pytest.approx(real_peak(job, 1500), rel=0.1)


def test_a_size_that_failed_is_never_the_answer() -> None:
    """Half the truth is hidden from torch: numpy takes 100 kB an example."""

    def hungry(model: nn.Module, batch: Any) -> Tensor:
        scratch = np.ones((len(batch[0]), 12_500))
        return classify(model, batch) + 0 * float(scratch[0, 0])

    law = rb.largest_batch(job_of(loss=hungry), 60 * MIB)
    failed = [t.micro_batch for t in law.certificate.trials if t.fits is False]
    assert failed
    assert law.largest < min(failed)


def test_a_step_that_fails_beyond_keeps_what_was_verified() -> None:
    def short(model: nn.Module, batch: Any) -> Tensor:
        if len(batch[0]) > 10_000:
            raise ValueError("no more than 10,000")
        return classify(model, batch)

    law = rb.largest_batch(job_of(loss=short, count=10**6), 60 * MIB)
    tried = law.certificate.trials
    assert all(law.largest < t.micro_batch for t in tried if not t.fits)
    if law.certificate.confidence == "verified":
        assert "no more than 10,000" in law.certificate.why


def test_a_broken_step_is_not_out_of_memory() -> None:
    def broken(model: nn.Module, batch: Any) -> Tensor:
        os.kill(os.getpid(), signal.SIGSEGV)
        return classify(model, batch)

    found = trial(job_of(loss=broken), 4)
    assert found.fits is None
    assert "SIGSEGV" in found.seen


def test_a_child_writes_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    def loud(model: nn.Module, batch: Any) -> Tensor:
        print("from the step", flush=True)
        return classify(model, batch)

    print("before", end="")
    trial(job_of(loss=loud), 4)
    assert capfd.readouterr().out == "before"


def test_more_than_the_machine_has_is_not_tried() -> None:
    law = rb.largest_batch(job_of(count=100), 2**50)
    assert law.certificate.confidence == "predicted"
    assert "free here" in law.certificate.why
    assert law.certificate.trials == ()


def test_processes_of_one_machine_share_it(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = budget_for(CPU).bytes
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert budget_for(CPU).bytes == pytest.approx(alone / 8, rel=0.05)


def test_files_kept_in_memory_give_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the tightest group on the way to the root counts."""
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path / "fs")
    monkeypatch.setattr(machine, "_PROCESS", tmp_path / "self")
    inner = tmp_path / "fs/slice/job"
    inner.mkdir(parents=True)
    (tmp_path / "self").mkdir()
    (tmp_path / "self/cgroup").write_text("0::/slice/job\n")
    for folder, limit in ((tmp_path / "fs", "9000"), (inner, "5000")):
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text("4000\n")
    (inner / "memory.stat").write_text("anon 500\ninactive_file 3500\n")
    assert machine.container_memory() == 4500


@pytest.mark.parametrize(
    "wrong",
    [
        {"memory": "8GiB"},
        {"memory": 2**30, "margin": "5%"},
        {"memory": 2**30, "device": "gpu"},
        {"memory": 2**30, "device": "meta"},
        {"memory": 10**8, "device": "cuda"},
        {"memory": 2**30, "patience_s": 0.0},
    ],
)
def test_more_bad_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(rb.SettingError):
        rb.largest_batch(job_of(), verify=False, **wrong)


def test_contrastive_losses_have_no_law_of_tokens() -> None:
    def contrast(model: nn.Module, batch: Any) -> Tensor:
        z = model(batch[0]).mean(1)
        return F.cross_entropy(z @ z.T, torch.arange(len(z)))

    job = job_of("tagger", loss=contrast)
    job = dataclasses.replace(job, model=nn.Embedding(50, 4))
    with pytest.raises(rb.SettingError, match="no product"):
        token_law(job, (4, 5, 6))


def test_ranks_agree_on_the_smallest_and_on_an_error(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*run, "--nproc-per-node=2", str(HERE / "largest_ranks.py"), str(out)],
        capture_output=True,
        text=True,
        check=False,
        env={**ENVIRONMENT, "PYTHONPATH": str(HERE)},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = json.loads(out.read_text())
    assert first["largest"] == second["largest"] == min(first["own"], 4096)
    assert first["error"] == "JobError: rank 1 found no largest batch"
    assert "not even one example" in second["error"]
