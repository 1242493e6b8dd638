"""What kind of optimizer a param group has."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from rightbatch.job.optimizers import Kind, kinds_of
from rightbatch.job.several_optimizers import as_one


def made(name: str, base: Any = torch.optim.Optimizer, **group: Any) -> Any:
    """An optimizer of a class of this name, with these numbers in its param group."""
    kind = type(name, (base,), {})
    parameters = [nn.Parameter(torch.zeros(2, 2))]
    return (
        kind(parameters, group) if base is torch.optim.Optimizer else kind(parameters)
    )


BETAS = {"lr": 0.1, "betas": (0.9, 0.99), "weight_decay": 0.1}


@pytest.mark.parametrize(
    ("optimizer", "family", "decoupled"),
    [
        (made("SGD", torch.optim.SGD), "sgd", False),
        (made("Mine", torch.optim.SGD), "sgd", False),
        (made("A", torch.optim.Adam), "adam", False),
        (made("A", torch.optim.AdamW), "adam", True),
        (made("A", torch.optim.NAdam), "adam", False),
        (made("R", torch.optim.RMSprop), "adam", False),
        (made("M", torch.optim.Muon), "muon", True),
        (made("F", torch.optim.Adafactor), "adafactor", True),
        (made("D", torch.optim.Adadelta), "other", False),
        (made("Lion", **BETAS), "lion", True),
        (made("Lion", torch.optim.Adam), "lion", True),  # the nearest name decides
        (made("SOAP", **BETAS), "shampoo", True),
        (made("DistributedShampoo", **BETAS), "shampoo", False),
        (made("Shampoo", weight_decouple=True, **BETAS), "shampoo", True),
        (made("AdamW8bit", **BETAS), "adam", True),
        (made("MuonWithAuxAdam", use_muon=True, **BETAS), "muon", True),
        (made("MuonWithAuxAdam", use_muon=False, **BETAS), "adam", True),
        (made("Tiger", **BETAS), "other", False),  # betas alone are no Adam
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
    both = as_one([Wrapper(torch.optim.RAdam(groups)), made("M", torch.optim.Muon)])
    assert kinds_of(both) == [
        Kind("adam", False, "RAdam"),
        Kind("adam", True, "RAdam"),
        Kind("muon", True, "M"),
    ]
