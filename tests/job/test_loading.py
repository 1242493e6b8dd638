"""Names of jobs load, or are refused with the nearest name."""

from pathlib import Path
from typing import Any

import pytest

import rightbatch as rb
from rightbatch.job.loading import load_named, look_up

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
    assert spec.about == "my_training.py:job"
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
        ("my_training.py:jbo", rb.SettingError, "the jobs in it: job"),
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
    with pytest.raises(rb.JobError, match="raised SyntaxError") as failed:
        rb.load_job(str(path))
    assert "my_training.py:1" in failed.value.seen


def test_what_a_file_defines_can_be_imported_by_its_workers(tmp_path: Path) -> None:
    path = tmp_path / "a_file_of_workers.py"
    path.write_text("class Data:\n    pass\n\n\njob = Data()\n")
    made = load_named(f"{path}:job")
    assert type(made).__module__ == "a_file_of_workers"
    # One that is named as a module in use gets another name.
    path = tmp_path / "random.py"
    path.write_text("class Data:\n    pass\n\n\njob = Data()\n")
    assert type(load_named(f"{path}:job")).__module__ == "_rightbatch_job_random"


@pytest.mark.parametrize(
    "text", ["a" * 300 + ".py:job", "a" * 5000, "x\0y.py:job", "d" * 300 + "/x.py"]
)
def test_what_can_be_no_file_is_refused_as_a_name(text: str) -> None:
    with pytest.raises(rb.SettingError, match="there is no"):
        look_up(text)
