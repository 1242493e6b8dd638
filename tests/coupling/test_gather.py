"""Over ranks with unequal parts: the gradient of one process with the whole batch."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch

import contrastive_ranks
import rightbatch as rb
from rightbatch.coupling.local_ranks import on_local_ranks

RANKS = [2, 4]


@pytest.fixture(scope="module")
def measured() -> dict[int, Any]:
    """Errors of every rank, by number of ranks; forked, as that is soon done."""
    importlib.import_module("torch._dynamo")  # by DDP: once, and not on each rank
    return on_local_ranks(lambda: contrastive_ranks.errors(), RANKS)


@pytest.mark.parametrize("ranks", RANKS)
def test_ranks_together_have_the_gradient_of_one_process(
    ranks: int, measured: dict[int, Any]
) -> None:
    """Each loss under DDP, and cached steps; float32 leaves 5e-7, float64 1e-14."""
    assert len(measured[ranks]) == ranks
    for of_rank in measured[ranks]:
        assert len(of_rank) == 20
        for case, errors in of_rank.items():
            limit = 5e-7 if "float32" in case else 1e-14
            assert max(errors.values()) <= limit, (case, errors)


def test_ranks_that_do_not_fit_are_refused_on_all() -> None:
    def refusals() -> list[str]:
        rank, found = torch.distributed.get_rank(), []
        for shape in [(4, 3 + rank), (4 * rank, 3)]:
            with pytest.raises(rb.SettingError) as caught:
                rb.coupling.info_nce(torch.ones(shape), torch.ones(shape), scale=1.0)
            found.append(caught.value.what)
        bad = torch.full((4, 3), torch.nan if rank else 1.0)
        for loss in (
            lambda: rb.coupling.info_nce(bad, bad, scale=1.0),
            lambda: rb.coupling.siglip(bad, bad, scale=1.0, bias=0.0),
        ):
            with pytest.raises(rb.NotFiniteError, match="not finite"):
                loss()
        everyone: list[Any] = [None] * 2
        torch.distributed.all_gather_object(everyone, found)
        return [what for of_rank in everyone for what in of_rank]

    expected = ["the ranks' features differ in width", "a rank without examples"]
    assert on_local_ranks(refusals, [2])[2] == expected * 2
