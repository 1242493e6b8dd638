"""Peak memory at any batch and length, traced at three lengths."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rightbatch as rb
from memory_jobs import MIB, job_of, real_peak
from rightbatch.memory.token_law import token_law


def test_tokens_at_any_length() -> None:
    """Traced at three lengths; at others, shorter and longer, as a real step."""
    job = job_of("tagger")
    law = token_law(job, (4, 8, 12))
    for length, size in ((6, 40), (12, 9), (24, 30), (100, 3)):
        data = tuple(torch.zeros(64, length, dtype=torch.long) for _ in "xy")
        real = real_peak(dataclasses.replace(job, data=data), size)
        # Attention takes some 50 KiB for itself at the largest length.
        assert law.peak(size, length) == pytest.approx(real, rel=0.005, abs=64 * 1024)
    largest = [law.largest(8 * MIB, length) for length in (4, 16, 64)]
    assert largest[0] > 3.5 * largest[1] > 12 * largest[2]
    with pytest.raises(rb.SettingError, match="must be positive"):
        law.largest(8 * MIB, 0)


def test_a_batch_without_lengths_is_refused() -> None:
    with pytest.raises(rb.SettingError, match="no axis of length"):
        token_law(job_of(data=(torch.zeros(9), torch.zeros(9))))
    with pytest.raises(rb.SettingError, match="three different lengths"):
        token_law(job_of("tagger"), (4, 4, 8))


def test_contrastive_losses_have_no_law_of_tokens() -> None:
    def contrast(model: nn.Module, batch: Any) -> Tensor:
        z = model(batch[0]).mean(1)
        return F.cross_entropy(z @ z.T, torch.arange(len(z)))

    job = job_of("tagger", loss=contrast, model=nn.Embedding(50, 4))
    with pytest.raises(rb.SettingError, match="no product"):
        token_law(job, (4, 5, 6))
