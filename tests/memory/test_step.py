"""Steps are measured with the longest example."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import rightbatch as rb
from memory_jobs import MIB, adamw


class Sentences:
    """Lists of words of very different length."""

    def __len__(self) -> int:
        return 500

    def __getitem__(self, index: int) -> Tensor:
        return torch.zeros(200 if index == 123 else 5 + index % 7)


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
