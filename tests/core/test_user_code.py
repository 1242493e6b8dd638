"""An error of the user's code is told with the user's own line."""

from __future__ import annotations

import sys

import pytest
import torch

import rightbatch as rb
from rightbatch.core.trees import slice_batch
from rightbatch.core.user_code import user_code


def test_the_deepest_line_of_the_users_is_told_not_ours_nor_a_librarys() -> None:
    def loss() -> None:
        slice_batch({"x": Broken()}, 0, 1, 2)  # theirs calls ours calls theirs

    class Broken:
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
