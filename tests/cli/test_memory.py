"""The command that finds the largest batch: its words, its file, its refusals."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from cases import rightbatch


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return rightbatch("measure", *arguments, cwd=cwd)


def test_the_command_answers_in_eighty_columns(tmp_path: Path) -> None:
    done = command("digits", "--memory", "--limit", "64MiB", "--out", "r", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "All 1,437 examples of the data set fit" in done.stdout
    assert "Verified" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    saved = json.loads((tmp_path / "r/memory.json").read_text())
    assert saved["certificate"]["confidence"] == "verified"
    told = command("digits", "--memory", "--no-verify", "--json", cwd=tmp_path)
    document = json.loads(told.stdout)
    assert document["certificate"]["confidence"] == "predicted"
    few = command("digits", "--memory", "--limit", "100KiB", cwd=tmp_path)
    assert few.returncode == 2
    assert "not even one example" in few.stderr
    alone = command("digits", "--limit", "1GiB", cwd=tmp_path)
    assert alone.returncode == 2
    assert "only with --memory" in alone.stderr
