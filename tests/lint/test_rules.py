"""Every rule finds its fault and stays silent without it."""

import math
import random
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rightbatch as rb
from cases import regression_job, with_target
from rightbatch.lint.job_rules import JOB_RULES
from rightbatch.lint.probe import BACKWARD, FEW, Probe
from rightbatch.lint.rules import RULES
from slow_steps import Clock, slow_job


def codes(job: rb.Job) -> set[str]:
    return {f.code for f in rb.check(job).items}


@pytest.mark.parametrize("job", [regression_job(), with_target(regression_job())])
def test_a_good_job_has_no_findings(job: rb.Job) -> None:
    findings = rb.check(job)
    assert findings
    assert findings.items == ()
    assert findings.rules == len(RULES)


def squared(reduce: Any) -> Any:
    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return reduce((model(batch[0]) - batch[1]).square())

    return loss


class Fixed(nn.Module):
    """Runs at one batch size only."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x.view(-1, 8, 5)).flatten(0, 1)


def frozen() -> nn.Module:
    return nn.Linear(5, 1).requires_grad_(False)


def in_batch(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Contrastive: every other example of the batch is a negative."""
    logits = model(batch[0]) @ model(batch[0]).T
    return nn.functional.cross_entropy(logits, torch.arange(len(logits)))


def unsteady(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return (model(batch[0]) - batch[1]).square().mean() * (1 + random.random())


class Sparse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(4, 1, sparse=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.table((x[:, 0] > 0).long())


TWO: dict[str, Any] = {"model": lambda: nn.Linear(5, 1)}  # weight and bias


def two_rates(params: Any, second: Any) -> torch.optim.Optimizer:
    """Weight and bias each with a rate of its own."""
    optimizer = torch.optim.SGD([{"params": [p]} for p in params], lr=0.1)
    optimizer.param_groups[1]["lr"] = second
    return optimizer


def test_a_group_may_stay_as_it_is() -> None:
    job = regression_job(**TWO, optimizer=lambda params: two_rates(params, 0.0))
    assert rb.check(job).items == ()


ONE = nn.Linear(5, 1)
stranger = nn.Parameter(torch.zeros(1))


FAULTS: dict[str, tuple[str, dict[str, Any]]] = {
    "empty": ("RB101", {"data": (torch.zeros(0, 5), torch.zeros(0, 1))}),
    "too small": ("RB101", {"examples": 8}),
    "frozen": ("RB102", {"model": frozen}),
    "not the model's": (
        "RB102",
        {"optimizer": lambda params: torch.optim.SGD([stranger], lr=0.1)},
    ),
    "nothing to scale": (
        "RB102",
        {"optimizer": lambda p: torch.optim.SGD(p, lr=0.0)},
    ),
    **{
        f"a second rate of {lr}": (
            "RB102",
            {**TWO, "optimizer": lambda p, lr=lr: two_rates(p, lr)},
        )
        for lr in (-0.1, math.nan, "text")
    },
    "on meta": ("RB102", {"model": lambda: nn.Linear(5, 1, device="meta")}),
    "ends the process": ("RB104", {"loss": lambda model, batch: sys.exit(0)}),
    "one network": ("RB102", {"model": lambda: ONE}),
    "lazy": ("RB102", {"model": lambda: nn.LazyLinear(1)}),
    "sparse": ("RB107", {"model": Sparse, "loss": squared(lambda x: x.mean())}),
    "lbfgs": ("RB103", {"optimizer": lambda p: torch.optim.LBFGS(list(p))}),
    "vector": ("RB104", {"loss": squared(lambda x: x)}),
    "nan": ("RB104", {"loss": squared(lambda x: x.mean() * float("nan"))}),
    "inf": ("RB104", {"loss": squared(lambda x: x.mean() / 0)}),
    "metric": (
        "RB104",
        {"loss": squared(lambda x: (x.mean(), (x < 1).float().mean()))},
    ),
    "mean and count": ("RB104", {"loss": squared(lambda x: (x.mean(), len(x)))}),
    "logits": ("RB104", {"loss": squared(lambda x: (x.mean(), x))}),
    "sum": ("RB105", {"loss": squared(lambda x: x.sum())}),
    "in-batch": ("RB105", {"loss": in_batch}),
    "not repeatable": ("RB106", {"loss": unsteady}),
    "detached": ("RB107", {"loss": squared(lambda x: x.mean().detach())}),
    "bad gradient": ("RB107", {"loss": squared(lambda x: (0 * x).mean().sqrt())}),
    "fixed size": ("RB108", {"model": Fixed}),
    "normalised": (
        "RB109",
        {"model": lambda: nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 1))},
    ),
    "met": ("RB110", {"evaluate": lambda model: 0.5, "target": 1.0}),
    "bad value": ("RB110", {"evaluate": lambda model: float("nan"), "target": 1.0}),
}


def test_a_loss_over_pairs_need_not_bear_a_single_example() -> None:
    def pairs(model: nn.Module, batch: Any) -> Tensor:
        one, other = model(batch[0]), batch[1]
        return rb.coupling.info_nce(one, other, scale=0.1)

    codes = [finding.code for finding in rb.check(regression_job(loss=pairs)).items]
    assert "RB105" in codes
    assert "RB108" not in codes


def test_a_pair_of_a_single_example_is_no_fault() -> None:
    """Half a batch of one would be no batch: a data set cannot collate it."""
    examples = [(torch.ones(5) * i, torch.ones(1)) for i in range(8)]
    change: dict[str, Any] = {"data": examples, "batch_size": 1}
    loss = squared(lambda x: (x.sum(), len(x)))
    findings = rb.check(regression_job(**change, loss=loss))
    assert not [f for f in findings.items if f.code == "RB104"]


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_found(fault: str) -> None:
    code, change = FAULTS[fault]
    findings = rb.check(regression_job(**change))
    assert code in {f.code for f in findings.items}
    found = next(f for f in findings.items if f.code == code)
    assert found.what
    assert found.seen or found.why


def test_every_rule_has_a_fault_that_shows_it() -> None:
    """What comes after the job itself is in test_bugs.py."""
    assert {code for code, _ in FAULTS.values()} == set(JOB_RULES)


def test_errors_are_raised_with_their_code() -> None:
    with pytest.raises(rb.JobError, match="RB105 the loss is a sum"):
        rb.check(regression_job(loss=squared(lambda x: x.sum()))).raise_errors()


def test_a_doubled_target_is_no_sum() -> None:
    """Mean losses far from zero, or with ragged counts, are no false alarms."""

    def ragged(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, int]:
        errors = (model(batch[0]) - batch[1]).square()
        return errors.sum(), len(errors)

    assert codes(regression_job(loss=ragged)) == set()
    assert codes(regression_job(loss=squared(lambda x: x.mean() + 100))) == set()


def test_the_users_own_line_is_told() -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        raise KeyError("no such column")

    findings = rb.check(regression_job(loss=loss))
    assert "no such column" in findings.errors[0].seen
    assert "test_rules.py" in findings.errors[0].seen
    assert 'raise KeyError("no such column")' in findings.errors[0].seen


def test_a_check_tells_where_examples_touch() -> None:
    def batch_norm() -> nn.Module:
        return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))

    assert rb.check(regression_job()).coupled == ""
    assert rb.check(regression_job(model=batch_norm)).coupled == "normalization"
    assert rb.check(regression_job(loss=in_batch)).coupled == "loss"


def test_a_mean_over_something_else_than_examples_is_noted() -> None:
    def weighted(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        weight = batch[1].abs()
        return (weight * (model(batch[0]) - batch[1]).square()).sum() / weight.sum()

    findings = rb.check(regression_job(loss=weighted))
    assert [(f.code, f.severity) for f in findings.items] == [("RB105", "note")]
    assert findings.coupled == ""


def test_long_passes_are_left_out_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """An example takes a second forward, and all passes may take six."""
    clock = Clock(monkeypatch)
    job = slow_job(clock, example_s=3.0, evaluate=lambda model: 1.0, target=0.5)
    findings = rb.check(job, budget_s=6.0)
    assert findings
    assert clock.now <= 8.0  # four examples had to be tried
    notes = {f.code: f for f in findings.items if f.severity == "note"}
    assert set(notes) == {"RB105", "RB106", "RB107", "RB108", "RB110", "RB306"}
    assert "repeatable-loss was not checked: one pass takes 4 s" in notes["RB106"].what
    clock.now = 0.0
    assert rb.check(job).items == ()  # without haste all are run
    assert clock.now > 60


def test_a_few_examples_stand_in_where_a_batch_takes_too_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    job = slow_job(clock, example_s=3e-3, batch_size=1000)
    assert rb.check(job, budget_s=0.9).items == ()
    assert clock.now <= 0.9


def test_a_probe_learns_what_an_example_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    probe = Probe(slow_job(Clock(monkeypatch), example_s=0.3))
    probe.differentiate(10)
    assert probe.forward_s == pytest.approx(0.3 / BACKWARD)
    assert probe.few == FEW
