"""What kind of optimizer a param group has."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from made_optimizers import of_class
from rightbatch.job.optimizers import Kind, kinds_of
from rightbatch.job.several_optimizers import as_one


def derived(name: str, base: Any) -> torch.optim.Optimizer:
    """An optimizer of a class of this name, derived from one of torch's."""
    return type(name, (base,), {})([nn.Parameter(torch.zeros(2, 2))])


BETAS = {"betas": (0.9, 0.99), "weight_decay": 0.1}


@pytest.mark.parametrize(
    ("optimizer", "family", "decoupled"),
    [
        (derived("SGD", torch.optim.SGD), "sgd", False),
        (derived("Mine", torch.optim.SGD), "sgd", False),
        (derived("A", torch.optim.Adam), "adam", False),
        (derived("A", torch.optim.AdamW), "adam", True),
        (derived("A", torch.optim.NAdam), "adam", False),
        (derived("R", torch.optim.RMSprop), "adam", False),
        (derived("M", torch.optim.Muon), "muon", True),
        (derived("F", torch.optim.Adafactor), "adafactor", True),
        (derived("D", torch.optim.Adadelta), "other", False),
        (of_class("Lion", **BETAS), "lion", True),
        (derived("Lion", torch.optim.Adam), "lion", True),  # the nearest name decides
        (of_class("SOAP", **BETAS), "shampoo", True),
        (of_class("DistributedShampoo", **BETAS), "shampoo", False),
        (of_class("Shampoo", weight_decouple=True, **BETAS), "shampoo", True),
        (of_class("AdamW8bit", **BETAS), "adam", True),
        (of_class("MuonWithAuxAdam", use_muon=True, **BETAS), "muon", True),
        (of_class("MuonWithAuxAdam", use_muon=False, **BETAS), "adam", True),
        (of_class("Tiger", **BETAS), "other", False),  # betas alone are no Adam
    ],
)
def test_families(optimizer: Any, family: str, decoupled: bool) -> None:
    (kind,) = kinds_of(optimizer)
    assert (kind.family, kind.decoupled) == (family, decoupled)


class Wrapper(torch.optim.Optimizer):
    """As accelerate wraps one."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    @property
    def param_groups(self) -> Any:  # pyrefly: ignore
        return self.optimizer.param_groups


def test_by_group_of_several_and_inside_of_wrappers() -> None:
    one, other = (nn.Parameter(torch.zeros(2, 2)) for _ in range(2))
    groups = [{"params": [one]}, {"params": [other], "decoupled_weight_decay": True}]
    both = as_one([Wrapper(torch.optim.RAdam(groups)), derived("M", torch.optim.Muon)])
    assert kinds_of(both) == [
        Kind("adam", False, "RAdam"),
        Kind("adam", True, "RAdam"),
        Kind("muon", True, "M"),
    ]
