"""The largest batch from end to end: verified, certified, and nothing is touched."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rightbatch as rb
from launching import TESTS, torchrun
from memory_jobs import MIB, Mlp, classify, job_of, law_of, trial, wide


def test_the_largest_batch_is_verified_in_a_process_under_the_limit() -> None:
    job = job_of(model=wide)
    limit = 96 * MIB  # what libraries take at their first use is a small part of it
    law = rb.largest_batch(job, limit)
    assert law.certificate.confidence == "verified", law.certificate
    assert len(law.certificate.trials) <= 4
    assert law.certificate.taken_bytes <= limit
    assert trial(job, law.largest, limit=2 * limit).fits  # malloc may hold twice
    assert law.binding.operation.startswith("aten.")
    assert "verified" in str(law)


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


def test_a_data_set_smaller_than_memory_is_the_limit() -> None:
    law = rb.largest_batch(job_of(count=100), 2**30)
    assert law.largest == 100
    assert law.certificate.confidence == "verified"


def test_a_budget_below_the_weights_says_so_with_the_number() -> None:
    with pytest.raises(rb.SettingError, match="not even one example") as caught:
        rb.largest_batch(job_of(), 1000)
    weights = law_of(job_of()).parameters
    assert f"{weights / MIB:.3g} MiB" in str(caught.value)


def test_margin_and_accumulation_leave_less() -> None:
    job, limit = job_of(count=10**6), 30 * MIB
    plain = rb.largest_batch(job, limit, verify=False).largest
    kept = rb.largest_batch(job, limit, verify=False, margin=0.1)
    pieces = rb.largest_batch(job, limit, verify=False, accumulation=3).largest
    assert kept.budget.bytes == pytest.approx(0.9 * limit, rel=1e-6)
    assert kept.largest < plain
    assert pieces <= plain


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
    failed = [t.micro_batch for t in law.certificate.trials if not t.fits]
    assert failed
    assert law.largest < min(failed)
    assert "no more than 10,000" in law.certificate.why


@pytest.mark.parametrize(
    ("error", "most"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), 100),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"), 1),
    ],
)
def test_an_answer_is_a_batch_that_ran(error: Exception, most: int) -> None:
    """Memory that tracing cannot see: smaller steps are tried until one runs."""

    def workspace(model: nn.Module, batch: Any) -> Tensor:
        if len(batch[0]) > most and real(batch):
            raise error
        return classify(model, batch)

    law = rb.largest_batch(job_of(loss=workspace, count=2000), 2**30)
    assert law.certificate.confidence == "verified"
    assert most // 2 < law.largest <= most
    assert law.certificate.trials[0].fits is False


def real(batch: Any) -> bool:
    """Whether a batch is no traced one."""
    return type(batch[0]) is Tensor


def test_memory_that_suffices_for_nothing_is_no_answer() -> None:
    def workspace(model: nn.Module, batch: Any) -> Tensor:
        if real(batch):
            raise MemoryError
        return classify(model, batch)

    with pytest.raises(rb.SettingError, match="not even one example ran"):
        rb.largest_batch(job_of(loss=workspace, count=50), 2**30)


@pytest.mark.parametrize("kind", [ValueError, SystemExit])
def test_an_error_of_the_job_is_not_memory(kind: type[BaseException]) -> None:
    def broken(model: nn.Module, batch: Any) -> Tensor:
        if len(batch[0]) > 100 and real(batch):
            raise kind("no more than 100")
        return classify(model, batch)

    law = rb.largest_batch(job_of(loss=broken, count=2000), 2**30)
    assert 50 < law.largest <= 100
    assert law.certificate.confidence == "verified"
    assert "no more than 100" in law.certificate.why
    assert all(t.fits is not False for t in law.certificate.trials)


def test_a_job_that_runs_at_no_size_is_refused() -> None:
    def broken(model: nn.Module, batch: Any) -> Tensor:
        if real(batch):
            raise KeyError("labels")
        return classify(model, batch)

    with pytest.raises(rb.JobError, match="no step runs") as refused:
        rb.largest_batch(job_of(loss=broken, count=50), 2**30)
    assert "KeyError: 'labels'" in refused.value.seen


@pytest.mark.parametrize("how", ["a factory", "a module", "its last layer", "a buffer"])
def test_a_model_without_numbers_is_refused(how: str) -> None:
    def make() -> nn.Module:
        model = Mlp()
        if how == "its last layer":
            model.last = nn.Linear(64, 5, device="meta")
        elif how == "a buffer":
            model.register_buffer("count", torch.zeros(3, device="meta"))
        else:
            model.to("meta")
        return model

    job = job_of(model=make() if how == "a module" else make)
    with pytest.raises(rb.JobError, match="meta device"):
        rb.largest_batch(job, 2**28)


def test_a_step_that_hangs_ends_the_search_and_leaves_a_prediction() -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        if len(batch[0]) > 1000 and real(batch):
            time.sleep(60)
        return classify(model, batch)

    job = job_of(model=wide, loss=loss, count=10**6)
    law = rb.largest_batch(job, 100 * MIB, patience_s=2.0)
    assert "took more than 2 s" in law.certificate.why
    assert law.certificate.confidence == "predicted"
    assert law.largest > 1000


def test_more_than_the_machine_has_is_not_tried() -> None:
    law = rb.largest_batch(job_of(count=100), 2**50)
    assert law.certificate.confidence == "predicted"
    assert "free here" in law.certificate.why
    assert law.certificate.trials == ()


@pytest.mark.parametrize(
    "wrong",
    [
        {"memory": -1.0},
        {"memory": math.nan},
        {"memory": "8GiB"},
        {"memory": 2**30, "margin": 1.0},
        {"memory": 2**30, "margin": "5%"},
        {"memory": 2**30, "accumulation": 0},
        {"memory": 2**30, "ranks": 0},
        {"memory": 2**30, "sharded": True},
        {"memory": 2**30, "device": "gpu"},
        {"memory": 2**30, "device": "meta"},
        {"memory": 10**8, "device": "cuda"},
        {"memory": 2**30, "patience_s": 0.0},
        {"device": "mps"},
    ],
)
def test_bad_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(rb.SettingError):
        rb.largest_batch(job_of(), verify=False, **wrong)


def test_ranks_agree_on_the_smallest(tmp_path: Path) -> None:
    out = tmp_path / "answers.json"
    done = torchrun(TESTS / "largest_ranks.py", out, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = json.loads(out.read_text())
    assert first["largest"] == second["largest"] == first["within_30_mib"]
