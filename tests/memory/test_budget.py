"""The terms of a budget, each with its source, add up."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from memory_jobs import CPU
from rightbatch.core import machine
from rightbatch.memory.budget import budget_for


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


def test_processes_of_one_machine_share_it(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = budget_for(CPU).bytes
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert budget_for(CPU).bytes == pytest.approx(alone / 8, rel=0.05)


def test_the_terms_of_a_budget_add_up() -> None:
    budget = budget_for(torch.device("cuda"), 80e9, margin=0.1)
    names = [term.name for term in budget.terms]
    assert names == [
        "CUDA context",
        "cuBLAS workspace",
        "allocator's reserve",
        "margin for longer examples",
    ]
    assert budget.bytes == 80_000_000_000 - sum(term.bytes for term in budget.terms)
    assert len(budget.lines()) == len(names) + 2
