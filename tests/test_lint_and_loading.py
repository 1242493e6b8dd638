"""Every rule finds its fault and stays silent without it; names load or are refused."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rightbatch as rb
from cases import regression_job, with_target
from rightbatch.job.address import look_up
from rightbatch.lint.rules import RULES


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


def sparse_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return (model(batch[0]) - batch[1]).square().mean()


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
    "one network": ("RB102", {"model": lambda: ONE}),
    "lazy": ("RB102", {"model": lambda: nn.LazyLinear(1)}),
    "sparse": ("RB107", {"model": Sparse, "loss": sparse_loss}),
    "lbfgs": ("RB103", {"optimizer": lambda p: torch.optim.LBFGS(list(p))}),
    "vector": ("RB104", {"loss": squared(lambda x: x)}),
    "nan": ("RB104", {"loss": squared(lambda x: x.mean() * float("nan"))}),
    "inf": ("RB104", {"loss": squared(lambda x: x.mean() / 0)}),
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


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_found(fault: str) -> None:
    code, change = FAULTS[fault]
    findings = rb.check(regression_job(**change))
    assert code in {f.code for f in findings.items}
    found = next(f for f in findings.items if f.code == code)
    assert found.what
    assert found.seen or found.why


def test_every_rule_has_a_fault_that_shows_it() -> None:
    assert {code for code, _ in FAULTS.values()} == set(RULES)


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
    assert "test_lint_and_loading.py" in findings.errors[0].seen
    assert 'raise KeyError("no such column")' in findings.errors[0].seen


# Loading

FILE = """
import torch, rightbatch as rb
x = torch.randn(40, 3)
job = rb.Job(
    model=lambda: torch.nn.Linear(3, 1),
    loss=lambda model, batch: model(batch[0]).square().mean(),
    data=(x,),
    optimizer=lambda params: torch.optim.SGD(params, lr=0.1),
    batch_size=8,
)
def make(): return job
number = 3
other, twin = 1, job
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "my_training.py"
    file.write_text(FILE)
    return file


@pytest.mark.parametrize("name", ["", ":job", ":make", ":twin"])
def test_files_load(path: Path, name: str) -> None:
    job = rb.load_job(f"{path}{name}")
    assert (job.batch_size, job.name) == (8, "my_training")


def test_a_file_is_understood_without_running_it(path: Path) -> None:
    path.write_text("raise SystemExit('was run')\n" + FILE)
    spec = look_up(f"{path}:job")
    assert spec.about == "my_training.py:job, batch_size=8"
    with pytest.raises(rb.JobError, match="SystemExit") as failed:
        rb.load_job(f"{path}:job")
    assert "my_training.py:1" in failed.value.seen


def test_modules_load(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    assert rb.load_job("my_training:job").batch_size == 8


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("digit", rb.SettingError, "did you mean 'digits'"),
        ("nowhere.py:job", rb.SettingError, "there is no file"),
        ("my_trainin.py:job", rb.SettingError, "my_training.py"),
        ("my_training.py:jbo", rb.SettingError, "my_training.py:job"),
        ("my_training.py:number", rb.JobError, "is no rightbatch.Job"),
        ("no_such_module:job", rb.JobError, "ModuleNotFoundError"),
        ("my_training:jbo", rb.SettingError, "did you mean"),
    ],
)
def test_wrong_names_are_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch, text: str, kind: Any, message: str
) -> None:
    monkeypatch.chdir(path.parent)
    with pytest.raises(kind) as refused:
        rb.load_job(text)
    assert message in str(refused.value)


def test_a_file_that_raises_tells_its_line(path: Path) -> None:
    path.write_text("x = 1\ny = x / 0\njob = 3\n")
    with pytest.raises(rb.JobError, match="ZeroDivisionError") as failed:
        rb.load_job(str(path))
    assert "my_training.py:2: y = x / 0" in failed.value.seen
    path.write_text("def f(:\n")
    with pytest.raises(rb.JobError, match="not valid Python") as failed:
        rb.load_job(str(path))
    assert "my_training.py:1" in failed.value.seen


@pytest.mark.parametrize("name", ["digits", "stdlib_gpt"])
def test_built_in_jobs_are_sound(name: str) -> None:
    job = rb.load_job(name)
    assert codes(job) == set()
    assert job.length > 1000


def test_the_example_is_sound() -> None:
    example = Path(__file__).parent.parent / "examples" / "own_job.py"
    assert codes(rb.load_job(str(example))) == set()
    assert len(example.read_text().splitlines()) < 80
