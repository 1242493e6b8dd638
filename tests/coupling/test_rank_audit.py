"""The audit names what published losses do over ranks, factor by factor."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import dropout

import contrastive_losses as published
import rightbatch as rb

SCALE = {"logit_scale": 2.66}


def seen(audit: Any, group: str = "encoder") -> list[float]:
    """Cosine and factor at 2 ranks, and at 4."""
    rows = [r for r in audit.gradients if r.parameters == group]
    return [value for row in rows for value in (row.cosine, row.factor)]


def test_ours_is_right() -> None:
    def ours(a: Tensor, b: Tensor, own: dict[str, Tensor]) -> Tensor:
        return rb.coupling.info_nce(a, b, scale=own["logit_scale"].exp())

    audit = rb.coupling.audit_ranks(ours, parameters=SCALE)
    assert audit.right
    assert not audit.findings
    assert "as on one process" in str(audit)
    assert [r.world_size for r in audit.gradients] == [2, 2, 4, 4]


def test_gathering_with_gradient_is_right_in_spawned_processes_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Beside CUDA nothing is forked."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    audit = rb.coupling.audit_ranks(
        published.open_clip_gather_with_grad, parameters=SCALE, world_sizes=[2]
    )
    assert audit.right
    assert not audit.findings


def test_without_gradient_of_the_gathered_only_the_encoder_is_short() -> None:
    audit = rb.coupling.audit_ranks(published.open_clip_default, parameters=SCALE)
    assert seen(audit) == pytest.approx([1, 0.5, 1, 0.25], abs=1e-4)
    assert seen(audit, "logit_scale") == pytest.approx([1, 1, 1, 1], abs=1e-4)
    encoder, groups = audit.findings
    assert encoder.startswith("encoder: gradients are 1/W of one process's")
    assert "all_gather" in encoder
    assert "multiply" not in encoder  # the scale's would be W times too large
    assert "encoder 1/W, logit_scale right" in groups


def test_a_scale_within_the_features_is_short_with_them() -> None:
    audit = rb.coupling.audit_ranks(published.grad_cache, parameters=SCALE)
    for group in ("encoder", "logit_scale"):
        assert seen(audit, group) == pytest.approx([1, 0.5, 1, 0.25], abs=1e-4)
    assert len(audit.findings) == 2
    assert "multiply the loss by the number of ranks W" in audit.findings[0]


def test_own_rows_without_gradient_of_the_gathered_point_elsewhere() -> None:
    audit = rb.coupling.audit_ranks(published.open_clip_local_loss, parameters=SCALE)
    for value in seen(audit)[0::2]:
        assert 0.7 < value < 0.98
    for value in seen(audit)[1::2]:
        assert 0.4 < value < 0.7
    assert "another direction" in audit.findings[0]


def test_a_loss_times_the_ranks_is_too_large() -> None:
    audit = rb.coupling.audit_ranks(published.times_ranks)
    assert seen(audit) == pytest.approx([1, 2, 1, 4], abs=1e-3)
    assert audit.loss_factors == pytest.approx({2: 2, 4: 4}, abs=1e-3)
    assert "divide the loss by the number of ranks" in audit.findings[0]
    assert "reported losses" in audit.findings[1]


def test_a_rank_that_fails_ends_it_with_a_reason() -> None:
    with pytest.raises(rb.JobError, match="fails on local ranks") as caught:
        rb.coupling.audit_ranks(published.waits_forever)
    assert "KeyError: 'broken on purpose'" in caught.value.seen


def test_arguments_that_make_no_sense_are_refused() -> None:
    with pytest.raises(rb.SettingError, match="equal parts"):
        rb.coupling.audit_ranks(published.times_ranks, world_sizes=[3])
    with pytest.raises(rb.SettingError, match="at least 2"):
        rb.coupling.audit_ranks(published.times_ranks, world_sizes=[1])


def test_a_loss_that_cannot_be_sent_is_refused_where_nothing_forks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(rb.SettingError, match="cannot be sent") as caught:
        rb.coupling.audit_ranks(lambda a, b: published.times_ranks(a, b))
    assert "a module that can be imported" in caught.value.fix


SCRIPT = """
import functools, rightbatch as rb
loss = functools.partial(rb.coupling.info_nce, scale=10.0)
print(rb.coupling.audit_ranks(loss, world_sizes=[2]))
"""


@pytest.mark.skipif(
    sys.platform != "linux",
    reason="elsewhere processes import the script anew, which needs the guard",
)
def test_a_script_without_a_guard_can_ask() -> None:
    done = subprocess.run(
        [sys.executable], input=SCRIPT, capture_output=True, text=True
    )
    assert "as on one process" in done.stdout


@pytest.mark.parametrize(
    ("loss", "seen"),
    [
        (lambda a, b: dropout(a @ b.T, 0.5).mean(), "another each time"),
        (lambda a, b: (a * b).sum() * math.nan, "NaN"),
        (lambda a, b: ((a * b).sum(1) - 5).relu().mean(), "its gradient is zero"),
    ],
)
def test_what_one_process_says_nothing_of_is_refused(loss: Any, seen: str) -> None:
    with pytest.raises(rb.JobError, match="cannot be compared") as caught:
        rb.coupling.audit_ranks(loss, world_sizes=[2])
    assert seen in caught.value.seen


def test_a_loss_of_zero_is_no_division_by_it() -> None:
    """With a gradient that is none."""

    def zero(a: Tensor, b: Tensor) -> Tensor:
        value = -(a * b).sum(1).mean()
        return value - value.detach()

    assert rb.coupling.audit_ranks(zero, world_sizes=[2]).right
