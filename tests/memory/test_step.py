"""Steps are measured with the longest example."""

from __future__ import annotations

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
    """Counts how often it is read; its examples may refuse to be copied."""

    def __init__(self, copied: bool = True, many: bool = False) -> None:
        self.copied, self.reads = copied, 0
        if many:
            self.__dict__["__getitems__"] = lambda wanted: [self[i] for i in wanted]

    def __len__(self) -> int:
        return 30

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.reads += 1
        return {"x": Uncopied([index]) if not self.copied else [index]}


class Uncopied(list[int]):
    """Holds something that has no copy, such as an open file."""

    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("cannot pickle '_io.BufferedReader' object")


def emptied(examples: list[dict[str, list[int]]]) -> Tensor:
    """A collate that takes its examples apart."""
    return torch.tensor([float(example.pop("x").pop()) for example in examples])


@pytest.mark.parametrize(
    ("data", "reads"), [(Counted(), 1), (Counted(many=True), 1), (Counted(False), 41)]
)
def test_an_example_is_read_once_however_slow_that_is(data: Any, reads: int) -> None:
    job = rb.Job(
        model=lambda: nn.Linear(1, 1),
        loss=lambda m, b: m(b).square().mean(),
        data=data,
        optimizer=adamw,
        batch_size=8,
        collate=emptied,
    )
    step = step_of(job)
    data.reads = 0
    assert step.batch(40).tolist() == [0.0] * 40
    assert data.reads == reads


def test_looking_for_the_longest_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rightbatch.memory.step.LOOK_S", -1.0)
    data: Any = Sentences()
    job = rb.Job(
        model=lambda: nn.Linear(1, 1),
        loss=lambda m, b: m(b).square().mean(),
        data=data,
        optimizer=adamw,
        batch_size=8,
        collate=padded,
    )
    assert step_of(job).example == "1 examples looked at, all of one size"


def padded(examples: list[Tensor]) -> Tensor:
    return nn.utils.rnn.pad_sequence(examples, batch_first=True).unsqueeze(-1)


def test_the_longest_example_is_what_is_measured() -> None:
    data: Any = Sentences()
    job = rb.Job(
        model=lambda: nn.Sequential(nn.Linear(1, 64), nn.Linear(64, 1)),
        loss=lambda m, b: m(b).square().mean(),
        data=data,
        optimizer=adamw,
        batch_size=8,
        collate=padded,
    )
    law = rb.largest_batch(job, 30 * MIB, verify=False)
    assert law.example == "the longest of 500 examples looked at (number 123)"
    assert law.envelope.binding(1000).linear >= 200 * 64 * 4
