"""Steps are measured with the longest example."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rightbatch as rb
from memory_jobs import MIB, adamw
from rightbatch.memory.step import step_of


class Sentences:
    """Lists of words of very different length."""

    def __len__(self) -> int:
        return 500

    def __getitem__(self, index: int) -> Tensor:
        return torch.zeros(200 if index == 123 else 5 + index % 7)


class Counted:
    """Counts how often it is read."""

    def __init__(self, many: bool = False) -> None:
        self.reads = 0
        if many:
            self.__dict__["__getitems__"] = lambda wanted: [self[i] for i in wanted]

    def __len__(self) -> int:
        return 30

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.reads += 1
        return {"x": [index]}


def emptied(examples: list[dict[str, list[int]]]) -> Tensor:
    """A collate that takes its examples apart."""
    return torch.tensor([float(example.pop("x").pop()) for example in examples])


def padded(examples: list[Tensor]) -> Tensor:
    return nn.utils.rnn.pad_sequence(examples, batch_first=True).unsqueeze(-1)


def job_of(data: Any, collate: Any) -> rb.Job:
    return rb.Job(
        model=lambda: nn.Sequential(nn.Linear(1, 64), nn.Linear(64, 1)),
        loss=lambda m, b: m(b).square().mean(),
        data=data,
        optimizer=adamw,
        batch_size=8,
        collate=collate,
    )


@pytest.mark.parametrize("many", [False, True])
def test_an_example_is_read_once_however_slow_that_is(many: bool) -> None:
    data = Counted(many)
    step = step_of(job_of(data, emptied))
    data.reads = 0
    assert step.batch(40).tolist() == [0.0] * 40
    assert data.reads == 1


def test_an_example_that_has_no_copy_is_read_again() -> None:
    locks = [threading.Lock() for _ in range(50)]
    step = step_of(job_of(locks, lambda examples: torch.zeros(len(examples))))
    assert step.batch(40).tolist() == [0.0] * 40


def test_looking_for_the_longest_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rightbatch.memory.step.LOOK_S", -1.0)
    step = step_of(job_of(Sentences(), padded))
    assert step.example == "1 examples looked at, all of one size"


def test_the_longest_example_is_what_is_measured() -> None:
    law = rb.largest_batch(job_of(Sentences(), padded), 30 * MIB, verify=False)
    assert law.example == "the longest of 500 examples looked at (number 123)"
    assert law.envelope.binding(1000).linear >= 200 * 64 * 4
