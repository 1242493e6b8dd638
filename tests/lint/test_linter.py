"""What a user's own loop hands over: batches of any shape, optimizer and loader."""

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import rightbatch as rb
from cases import made_up, regression_job
from rightbatch.data.audit.loader_findings import LOADER_RULES
from rightbatch.lint.job_rules import JOB_RULES
from rightbatch.lint.linter import chosen_codes
from rightbatch.lint.rules import (
    ALL_RULES,
    FAMILIES,
    MEASURED_RULES,
    RULES,
    explanation,
    page,
    remedy,
)

X = torch.randn(32, 5, generator=torch.Generator().manual_seed(0))
Y = torch.arange(32) % 3
NET = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))


def pairs(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def named(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    return F.cross_entropy(model(batch["x"]), batch["y"])


BATCHES: dict[str, tuple[Any, Any]] = {
    "tuple": (pairs, (X, Y)),
    "list": (pairs, [X, Y]),
    "dict": (named, {"x": X, "y": Y}),
    "plain tensor": (lambda model, batch: model(batch).square().mean(), X),
    "a text for each": (named, {"x": X, "y": Y, "id": [f"no {i}" for i in Y]}),
    "a text for all": (named, {"x": X, "y": Y, "task": "colours"}),
}


@pytest.mark.parametrize("name", BATCHES)
def test_a_batch_of_any_shape(name: str) -> None:
    loss, batch = BATCHES[name]
    findings = rb.check(model=NET, loss=loss, batch=batch)
    assert findings.items == ()
    assert findings.rules == len(RULES)


BAD: dict[str, tuple[str, str, Any]] = {
    "no example": ("holds no example", "batch of 0", (X[:0], Y[:0])),
    "one example": ("holds one example", "batch of 1", (X[:1], Y[:1])),
    "unequal": ("cannot be told", "[16, 32]", (X, Y[:16])),
    "no axis": ("cannot be told", "Tensor", torch.tensor(1.0)),
    "only a text": ("cannot be told", "str", "text"),
    "a loader": ("cannot be told", "DataLoader", DataLoader(TensorDataset(X, Y))),
}


@pytest.mark.parametrize("name", BAD)
def test_a_batch_that_says_nothing_is_refused(name: str) -> None:
    what, seen, batch = BAD[name]
    with pytest.raises(rb.JobError, match=what) as raised:
        rb.check(model=NET, loss=pairs, batch=batch)
    assert seen in raised.value.seen
    assert "split=" not in raised.value.fix  # check has no such argument


def test_bad_examples_are_named() -> None:
    broken = X.clone()
    broken[0, 0] = torch.nan
    (finding,) = rb.check(model=NET, loss=pairs, batch=(broken, Y)).items
    assert finding.code == "RB104"
    assert "the batch itself holds NaN" in finding.seen


def test_what_is_checked_must_be_clear() -> None:
    job = regression_job()
    criterion: Any = nn.CrossEntropyLoss()
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "a job, or a model"),
        ({"model": NET, "batch": (X, Y)}, "a job, or a model"),
        ({"job": job, "batch": (X, Y)}, "takes no other parts"),
        ({"job": NET}, "takes no other parts"),
        ({"model": NET, "loss": criterion, "batch": (X, Y)}, "a criterion"),
        ({"job": job, "select": ["RB9"]}, "no rule RB9"),
        ({"job": job, "select": ["RB2"]}, "none of the rules"),
        ({"job": job, "ignore": "RB"}, "none of the rules"),
        ({"model": nn.Linear, "loss": pairs, "batch": (X, Y)}, "the network itself"),
        ({"job": job, "loader": 5}, "loader is something else"),
        ({"job": job, "loader": [(X, Y)]}, "loader is something else"),
        ({"job": job, "scheduler": "cosine"}, "scheduler is something else"),
        ({"job": job, "averaged": "ema"}, "averaged is something else"),
        ({"job": job, "schedule": 5}, "schedule is something else"),
        ({"job": job, "schedule": "mountain:8"}, "schedule"),
        (
            {
                "model": NET,
                "loss": pairs,
                "batch": (X, Y),
                "schedule": "ramp:8:16:1epochs",
            },
            "how long an epoch",
        ),
    ]
    for given, message in cases:
        with pytest.raises(rb.SettingError, match=message):
            rb.check(**given)


@pytest.mark.parametrize("fused", [False, True])
def test_a_loops_own_objects_are_left_as_they_are(fused: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Dropout(), nn.Linear(8, 3))
    groups = [
        {"params": model[0].parameters(), "lr": 1e-3},
        {"params": model[2].parameters()},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, fused=fused)
    pairs(model, (X, Y)).backward()
    optimizer.step()
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    grads = [p.grad for p in model.parameters()]
    moments = [
        optimizer.state[p]["exp_avg"].clone() for g in groups for p in optimizer.state
    ]
    drawn = torch.get_rng_state()
    assert rb.check(model=model, loss=pairs, batch=(X, Y), optimizer=optimizer)
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    assert all(a is p.grad for a, p in zip(grads, model.parameters(), strict=True))
    after = [optimizer.state[p]["exp_avg"] for g in groups for p in optimizer.state]
    assert all(torch.equal(a, b) for a, b in zip(moments, after, strict=True))
    assert torch.equal(drawn, torch.get_rng_state())
    assert model.training


def test_an_optimizer_of_another_model_is_found() -> None:
    stranger = torch.optim.SGD(nn.Linear(5, 3).parameters(), lr=0.1)
    found = rb.check(model=NET, loss=pairs, batch=(X, Y), optimizer=stranger)
    assert [f.code for f in found.errors] == ["RB102"]


def test_the_loader_is_audited_too() -> None:
    data = TensorDataset(torch.randn(512, 5), torch.arange(512) % 3)
    loader = DataLoader(data, batch_size=16)
    given: dict[str, Any] = {
        "model": NET,
        "loss": pairs,
        "batch": next(iter(loader)),
        "loader": loader,
    }
    findings = rb.check(**given, select=["RB1", "RB2"])
    assert [f.code for f in findings.items] == ["RB201"]
    assert findings.rules == len(JOB_RULES) + len(LOADER_RULES)
    assert rb.check(**given, select=["RB201"]).rules == 1
    assert rb.check(**given, select=["RB206"]).items == ()
    given["loader"] = DataLoader(data, batch_size=16, shuffle=True)
    assert rb.check(**given, select=["RB2"]).items == ()


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        while True:
            yield X[0], Y[0]


def test_a_loader_that_cannot_be_audited_is_a_note() -> None:
    findings = rb.check(
        model=NET, loss=pairs, batch=(X, Y), loader=DataLoader(Endless(), batch_size=4)
    )
    notes = [f for f in findings.items if f.code == "RB201"]
    assert ["was not audited" in f.what for f in notes] == [True]
    assert findings


def test_a_run_alone_is_judged_by_its_measurements(tmp_path: Any) -> None:
    made_up().save(tmp_path / "measurements.json")
    findings = rb.check(run=tmp_path)
    assert not {f.code for f in findings.items} - {*MEASURED_RULES}
    assert findings.rules == len({*RULES} & {*JOB_RULES, *MEASURED_RULES})
    with pytest.raises(rb.RunFolderError):
        rb.check(run=tmp_path / "none")


def test_every_rule_is_watched() -> None:
    seen: list[str] = []
    rb.check(regression_job(), watch=seen.append)
    assert seen[0] == f"RB101 enough-data, 1 of {len(RULES)}"
    assert len(seen) == len(RULES)


def test_codes_are_chosen_by_their_beginnings() -> None:
    assert chosen_codes() == list(ALL_RULES)
    assert chosen_codes(["RB105", "RB10"], ["RB101"])[0] == "RB102"
    assert chosen_codes("rb3, RB501", "RB30") == ["RB310", "RB501"]
    assert {c[:3] for c in ALL_RULES} <= set(FAMILIES)


@pytest.mark.parametrize("code", ALL_RULES)
def test_every_rule_has_a_page(code: str) -> None:
    text = explanation(code)
    assert page(code).startswith(f"# {code}: ")
    assert len(text.split("\n\n")) >= 2, "why it matters, and what to do"
    assert "Args:" not in text
    assert text.splitlines()[0].endswith(".")
    assert remedy(code).endswith(".")


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(__file__).parents[2] / "examples" / "check_loop.py"
    runpy.run_path(str(path))
    before, after = capsys.readouterr().out.split("Mended")
    assert "RB105 error: the loss is a sum" in before
    assert "error" not in after
    assert len(path.read_text().splitlines()) < 60


def test_a_loss_with_another_network_leaves_it_as_it_is() -> None:
    """Its gradients and running statistics too, though the loss never uses ours."""
    net = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    before = {name: value.clone() for name, value in net.state_dict().items()}

    def closed(model: nn.Module, batch: Any) -> Tensor:
        return pairs(net, batch)

    findings = rb.check(model=net, loss=closed, batch=(X, Y))
    assert "another network than the one" in findings.errors[0].what
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


def test_a_schedule_may_be_a_word() -> None:
    job = regression_job(epochs=4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(
        torch.optim.SGD(NET.parameters(), lr=0.1), T_max=64
    )
    how: dict[str, Any] = {"scheduler": scheduler, "select": "RB502"}
    (finding,) = rb.check(job, schedule="ramp:16:64:2epochs", **how).items
    assert "16 -> 64" in finding.seen


def test_memory_that_a_comparison_lacks_is_no_fault_of_the_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(probe: Any) -> None:
        raise MemoryError

    monkeypatch.setitem(RULES, "RB303", full)
    (finding,) = rb.check(regression_job(), select="RB303").items
    assert finding.severity == "note"
    assert "norm-under-accumulation was not checked" in finding.what
