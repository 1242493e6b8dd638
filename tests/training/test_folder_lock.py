"""The second run in a folder is refused, for as long as the first one lives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import rightbatch as rb
from cases import regression_job
from rightbatch.training.folder_lock import FolderLock

HOLDER = """
import os, sys, time
from rightbatch.training.folder_lock import FolderLock
lock = FolderLock(__import__("pathlib").Path(sys.argv[1]))
if os.fork() == 0:
    time.sleep(30)  # a data worker that outlives it
print("held", flush=True)
time.sleep(30)
"""


def test_a_lock_dies_with_its_process_not_with_its_workers(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    try:
        with pytest.raises(rb.RunFolderError, match="under way") as refused:
            FolderLock(tmp_path)
        assert str(holder.pid) in refused.value.seen
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        FolderLock(tmp_path).close()  # the child lives
    finally:
        os.killpg(holder.pid, signal.SIGKILL)
        holder.stdout.close()
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_within_one_process_too(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    for _ in range(2):  # asking does not let go of it
        with pytest.raises(rb.RunFolderError, match="which is this one"):
            FolderLock(tmp_path)
    lock.close()
    lock.close()
    FolderLock(tmp_path).close()


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("mine")
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / ".lock").symlink_to(other)
    with pytest.warns(UserWarning, match="cannot lock"):
        FolderLock(tmp_path / "r").close()
    assert other.read_text() == "mine"


@pytest.mark.parametrize("resume", [False, "auto"])
def test_a_second_run_is_refused_and_changes_nothing(
    resume: bool, tmp_path: Path
) -> None:
    job = regression_job()
    rb.train(job, examples=64, out=tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    lock = FolderLock(tmp_path)
    with pytest.raises(rb.RunFolderError, match=r"under way|already holds"):
        rb.train(job, examples=128, out=tmp_path, resume=resume)
    lock.close()
    after = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert after == before
    rb.train(job, examples=128, out=tmp_path, resume=True)
