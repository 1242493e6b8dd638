"""Trials find the limit and harm nobody, and what goes wrong in them is told."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from memory_jobs import MIB, classify, job_of, trial, wide


def test_a_trial_finds_the_limit_and_leaves_this_process_alone() -> None:
    job = job_of(model=wide)
    before = resource.getrlimit(resource.RLIMIT_DATA)
    assert trial(job, 64, limit=200 * MIB).fits
    large = trial(job, 200_000, limit=200 * MIB)
    assert large.fits is False
    assert "alloc" in large.seen
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    torch.zeros(50 * MIB)  # 200 MiB more than the limit of the child
    assert not multiprocessing.active_children()  # nobody is left behind


def test_what_a_trial_took_is_what_it_needs() -> None:
    """Within 10 % of the tensors where malloc gives back, and a fixed part."""
    job = job_of(model=lambda: nn.Sequential(nn.Linear(40, 8192), nn.Linear(8192, 5)))
    small, large = (trial(job, size, exact=True) for size in (500, 2500))
    grown = large.taken - small.taken
    asked = large.allocated - small.allocated
    assert 0.9 * asked < grown < 2.5 * asked


@pytest.mark.parametrize(
    ("way", "fits", "seen"),
    [
        ("raises", None, "not today"),
        ("is killed", False, "ended by the system"),
        ("breaks", None, "SIGSEGV"),
        ("hangs", None, "took more than 2 s"),
    ],
)
def test_a_trial_that_goes_wrong_is_told(
    way: str, fits: bool | None, seen: str
) -> None:
    """Only a process that the system ended is taken for one out of memory."""
    parent = os.getpid()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        assert os.getpid() != parent
        if way == "raises":
            raise ValueError("not today")
        if way == "hangs":
            time.sleep(30)
        os.kill(os.getpid(), signal.SIGSEGV if way == "breaks" else signal.SIGKILL)
        return classify(model, batch)

    attempt = trial(job_of(loss=loss), 4, patience_s=2.0)
    assert attempt.fits is fits
    assert seen in attempt.seen


def test_a_child_writes_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    def loud(model: nn.Module, batch: Any) -> Tensor:
        print("from the step", flush=True)
        return classify(model, batch)

    print("before", end="")
    assert trial(job_of(loss=loud), 4).fits
    assert capfd.readouterr().out == "before"
