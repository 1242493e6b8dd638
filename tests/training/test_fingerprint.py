"""A job edited between two lives of a run is noticed; one that is only moved is not."""

from __future__ import annotations

import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import rightbatch as rb
from cases import regression_job
from rightbatch.training.fingerprint import changes, fingerprint
from rightbatch.training.trace import read_trace

FILE = """
import random
import torch
import torch.nn.functional as F
from torch import nn
import rightbatch as rb

SCALE, MODE = 2.0, "mean"
STARTED = "/tmp/run-2026-11-30"
g = torch.Generator().manual_seed(0)
x = torch.randn(96, 3, generator=g)
y = x.sum(1, keepdim=True)

def error(out, y):
    return F.mse_loss(out, y, reduction=MODE) * SCALE

def loss(model, batch):
    "The loss."
    return error(model(batch[0]), batch[1])

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 1)
        self.drop, self.p = nn.Dropout(0.1), 0.2
    def forward(self, x):
        return self.b(self.drop(F.relu(self.a(x))))

class Data(torch.utils.data.Dataset):
    noise = 0.1
    def __len__(self):
        return 96
    def __getitem__(self, i):
        return x[i] + self.noise * torch.randn(3), y[i]

def collate(items):
    return tuple(map(torch.stack, zip(*items)))

def evaluate(model):
    print(STARTED)
    return float(loss(model, (x, y)))

def make(data=None, **more):
    given = dict(
        model=Net, loss=loss, data=Data(), optimizer=lambda p: torch.optim.SGD(p, 0.1),
        batch_size=8, collate=collate, evaluate=evaluate, target=0.1,
    )
    return rb.Job(**{**given, **more})

tensors = lambda: make(data=None) and rb.Job(
    model=Net, loss=loss, data=(x, y), optimizer=lambda p: torch.optim.SGD(p, 0.1),
    batch_size=8,
)
"""


def of(text: str, name: str = "make") -> dict[str, str]:
    space: dict[str, Any] = {"__name__": "my_job"}
    exec(compile(textwrap.dedent(text), "my_job.py", "exec"), space)
    job = space[name]()
    torch.manual_seed(torch.initial_seed() % 1000 + 1)  # another life's numbers
    return fingerprint(job, job.make_model())


BEGUN = of(FILE)
EDITS = {
    "y = x.sum(1": ("y = -x.sum(1", "examples of the data"),
    "x = torch.randn(96, 3": ("x = 10 * torch.randn(96, 3", "examples of the data"),
    "g = torch.Generator().manual_seed(0)": (
        "g = torch.Generator().manual_seed(1)",
        "examples of the data",
    ),
    "torch.randn(3), y[i]": ("torch.rand(3), y[i]", "code of the data set"),
    "noise = 0.1": ("noise = 0.2", "code of the data set"),
    "return x[i] +": ("return x[i].double() +", "types in a batch"),
    "map(torch.stack, zip(*items))": (
        "map(torch.stack, list(zip(*items))[::-1])",
        "code of collate",
    ),
    "F.relu": ("F.gelu", "layers of the model"),
    "nn.Linear(4, 1)": ("nn.Linear(4, 1, bias=False)", "layers of the model"),
    "nn.Dropout(0.1)": ("nn.Dropout(0.3)", "layers of the model"),
    "self.p = nn.Dropout(0.1), 0.2": (
        "self.p = nn.Dropout(0.1), 0.3",
        "layers of the model",
    ),
    "self.a, self.b = nn.Linear(3, 4)": (
        "self.a, self.b = nn.Linear(3, 4).half()",
        "types in the model",
    ),
    "F.mse_loss": ("F.l1_loss", "code of loss"),
    "SCALE, MODE = 2.0": ("SCALE, MODE = 3.0", "code of loss"),
    'MODE = 2.0, "mean"': ('MODE = 2.0, "sum"', "code of loss"),
    "float(loss(model, (x, y)))": (
        "float(loss(model, (x, y))) + 1",
        "code of evaluate",
    ),
    "target=0.1": ("target=0.2", "target (0.1 then, 0.2 now)"),
    "evaluate=evaluate,": (
        "evaluate=evaluate, goal='max',",
        "goal (min then, max now)",
    ),
}


@pytest.mark.parametrize("old", EDITS)
def test_an_edit_is_noticed(old: str) -> None:
    new, what = EDITS[old]
    assert old in FILE
    assert what in "; ".join(changes(BEGUN, of(FILE.replace(old, new))))


def test_tensors_are_looked_at_in_full() -> None:
    begun = of(FILE, "tensors")
    assert changes(begun, of(FILE, "tensors")) == []
    one_row = FILE.replace(
        "y = x.sum(1, keepdim=True)", "y = x.sum(1, True); y[37] += 1"
    )
    assert changes(begun, of(one_row, "tensors")) == ["examples of the data"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("def loss", "# a comment\n\n\ndef unused():\n    return 5\n\ndef loss"),
        ('"The loss."', '"The loss, in other words."'),
        ("run-2026-11-30", "run-2026-12-01"),  # where it is kept is not what it does
        ("noise = 0.1", "noise = (0.1)"),
        ("batch_size=8, coll", "num_workers=0, batch_size=8, coll"),
        ("p: torch.optim", "params: torch.optim"),
    ],
)
def test_what_computes_the_same_is_the_same(old: str, new: str) -> None:
    assert old in FILE
    edited = FILE.replace(old, new)
    if "params:" in new:
        edited = edited.replace("SGD(p,", "SGD(params,")
    assert changes(BEGUN, of(edited)) == []


@pytest.mark.parametrize("kind", ["float32", "int64", "U4"])
def test_batches_of_numpy_arrays_are_compared(kind: str) -> None:
    def with_data(shift: int) -> rb.Job:
        return replace(
            regression_job(),
            data=[(np.arange(3) + shift + i).astype(kind) for i in range(20)],
            collate=lambda rows: {"x": np.stack(rows)},
        )

    network = nn.Linear(1, 1)
    begun, moved = (fingerprint(with_data(shift), network) for shift in (0, 1))
    assert changes(begun, moved) == ["examples of the data"]
    assert changes(begun, fingerprint(with_data(0), network)) == []


def test_examples_that_come_out_otherwise_each_time_are_not_compared() -> None:
    own = "torch.randn(3, generator=free)"
    free = FILE.replace("torch.randn(3)", own).replace(
        "class Data", "free = torch.Generator()\nfree.seed()\n\nclass Data"
    )
    begun = of(free)
    assert begun["examples of the data"] == ""
    assert changes(begun, of(free)) == []


def test_another_python_is_no_change_of_the_code() -> None:
    other = {**BEGUN, "Python": "3.9", "code of loss": "0" * 16}
    (told,) = changes(other, BEGUN)
    assert told.startswith("Python (3.9 then, ")


def test_a_data_set_that_cannot_be_read_is_left_to_training() -> None:
    class Broken:
        def __len__(self) -> int:
            return 9

        def __getitem__(self, i: int) -> Any:
            raise KeyError(i)

    job = replace(regression_job(), data=Broken())
    assert "examples of the data" not in fingerprint(job, job.make_model())


def test_a_changed_job_is_refused_until_it_is_accepted(tmp_path: Path) -> None:
    job = regression_job()
    rb.train(job, examples=64, out=tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    x, y = job.data
    turned = replace(job, data=(x, -y))
    with pytest.raises(rb.SettingError, match="has changed since") as refused:
        rb.train(turned, examples=128, out=tmp_path, resume=True)
    assert refused.value.seen == "examples of the data"
    assert "--accept-changes" in refused.value.fix
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    run = rb.train(turned, examples=128, out=tmp_path, resume=True, accept_changes=True)
    assert run.last.examples == 128
    assert "a job that has changed: examples of the data" in str(run.events)
    assert "examples of the data" in str(read_trace(tmp_path / "trace.jsonl"))
    rb.train(turned, examples=192, out=tmp_path, resume=True)  # told once


def test_a_data_set_of_another_fingerprint_can_be_accepted(tmp_path: Path) -> None:
    class Named(torch.utils.data.TensorDataset):
        _fingerprint = "one"

    job = regression_job()
    data = Named(*job.data)
    rb.train(replace(job, data=data), examples=64, out=tmp_path)
    data._fingerprint = "two"
    other = replace(job, data=data)
    with pytest.raises(rb.SettingError, match="has changed") as refused:
        rb.train(other, examples=128, out=tmp_path, resume=True)
    assert "fingerprint of the data (one then, two now)" in refused.value.seen
    run = rb.train(other, examples=128, out=tmp_path, resume=True, accept_changes=True)
    assert run.resumed == 4


def test_looking_at_a_job_changes_nothing() -> None:
    class Opens(torch.utils.data.Dataset[torch.Tensor]):
        reads = 0

        def __len__(self) -> int:
            return 32

        def __getitem__(self, index: int) -> torch.Tensor:
            self.reads += 1
            return torch.randn(5)

    data = Opens()
    job = replace(
        regression_job(), data=data, loss=lambda model, batch: model(batch).mean()
    )
    model: nn.Module = job.make_model()
    before = torch.get_rng_state()
    here = fingerprint(job, model)
    assert data.reads > 0
    data.reads = 0
    there = fingerprint(job, model, workers=True)
    assert data.reads == 0  # in a process of its own
    assert torch.equal(torch.get_rng_state(), before)
    assert here == there
