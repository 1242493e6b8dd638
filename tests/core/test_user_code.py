"""An error of the user's code is told with the user's own line."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch._utils import ExceptionWrapper
from torch.utils.data import Dataset, Subset, TensorDataset

import rightbatch as rb
from rightbatch.core.trees import slice_batch
from rightbatch.core.user_code import user_code, where_made


def test_the_deepest_line_of_the_users_is_told_not_ours_nor_a_librarys() -> None:
    def loss() -> None:
        slice_batch({"x": Broken([1, 2])}, 0, 1, 2)  # theirs calls ours calls theirs

    class Broken(list[int]):
        def __len__(self) -> int:
            return torch.ones(2).view(3).sum()  # pyrefly: ignore

    named = pytest.raises(rb.JobError, match="the loss raised RuntimeError")
    with named as failed, user_code("the loss"):
        loss()
    assert "torch.ones(2).view(3)" in failed.value.seen
    assert isinstance(failed.value.__cause__, RuntimeError)
    with pytest.raises(rb.JobError) as failed, user_code("the loss"):
        slice_batch({"x": [1, 2]}, "a", 1, 2)  # pyrefly: ignore
    assert "test_user_code.py" in failed.value.seen


def test_what_is_no_error_of_theirs_passes_through() -> None:
    for error in (
        torch.OutOfMemoryError("CUDA out of memory"),
        rb.SettingError("no"),
        KeyboardInterrupt(),
    ):
        with pytest.raises(type(error)) as raised, user_code("the loss"):
            raise error
        assert raised.value is error


@pytest.mark.parametrize("status", ["the loss is NaN", 0, None])
def test_a_job_does_not_end_the_process(status: object) -> None:
    named = pytest.raises(rb.JobError, match="the loss raised SystemExit")
    with named as failed, user_code("the loss"):
        sys.exit(status)  # pyrefly: ignore
    assert "sys.exit(status)" in failed.value.seen


@pytest.mark.parametrize("error", [SystemExit("bye"), MemoryError()])
def test_while_importing_they_are_errors_of_the_file(error: BaseException) -> None:
    named = pytest.raises(rb.JobError, match=f"raised {type(error).__name__}")
    with named as failed, user_code("importing train.py", imported=True):
        raise error
    assert "__main__" in failed.value.fix


class Particular(Exception):
    def __init__(self, example: int, reason: str) -> None:
        super().__init__(f"example {example}\n{reason}")


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def reads(error: Exception) -> None:
    try:
        {}["x"]
    except KeyError as cause:
        error.add_note("while reading example 37 of the data set")
        raise error from cause


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (KeyError("bad 37"), "bad 37"),
        (Particular(37, "torn"), "example 37"),
        (UnicodeDecodeError("utf-8", b"x", 0, 1, "odd"), "can't decode"),
        (FileNotFoundError(2, "No such file", "a.png"), "a.png"),
        (ValueError(""), "ValueError"),
        (Mute(), "str() failed"),
    ],
)
def test_what_a_data_worker_raised_is_told_as_if_it_were_here(
    error: Exception, told: str
) -> None:
    """torch raises it again with the whole traceback as its message."""
    elsewhere: Any = None
    try:
        reads(error)
    except Exception:
        elsewhere = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(rb.JobError) as failed, user_code("reading the data"):
        elsewhere.reraise()
    assert failed.value.what == f"reading the data raised {type(error).__name__}"
    assert told in failed.value.seen.splitlines()[0]
    assert "test_user_code.py" in failed.value.seen
    assert "raise error from cause" in failed.value.seen
    assert "while reading example 37" in failed.value.seen
    assert "DataLoader" not in failed.value.seen


def test_where_examples_are_made_is_told_of_ones_own_class_only() -> None:
    class Lists(Dataset[list[int]]):
        def __getitem__(self, index: int) -> list[int]:
            return [index]

    assert where_made(Lists()).startswith("Lists.__getitem__, ")
    assert where_made(Subset(Lists(), [1])) == where_made(Lists())
    assert where_made(TensorDataset(torch.ones(3))) == ""
    assert where_made([1, 2]) == ""
