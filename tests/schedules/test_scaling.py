"""The scaling rules."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import rightbatch as rb


def sgd() -> torch.optim.SGD:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(3))], lr=0.1)


@pytest.mark.parametrize(
    ("rule", "more", "expected"),
    [
        ("linear", {}, 4.0),
        ("sqrt", {}, 2.0),
        ("noise-aware", {"noise_scale": 64.0}, 1.6),
        ("exponent", {"exponent": 0.75}, 4**0.75),
        ("none", {}, 1.0),
    ],
)
def test_rules(rule: Any, more: dict[str, float], expected: float) -> None:
    optimizer = sgd()
    scaling = rb.scale_hyperparameters(
        optimizer, batch_from=64, batch_to=256, rule=rule, **more
    )
    assert scaling.lr == pytest.approx(expected)
    assert scaling.ema == (1.0 if rule == "none" else 4.0)
    with pytest.raises(rb.SettingError, match="belong together"):
        rb.scale_hyperparameters(sgd(), batch_from=1, batch_to=2, exponent=0.5)
