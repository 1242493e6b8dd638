"""The command that finds the largest batch: its words, its file, its refusals."""

import json
from pathlib import Path

from cases import rightbatch


def test_the_command_answers_in_eighty_columns(tmp_path: Path) -> None:
    done = rightbatch(
        "memory", "digits", "--limit", "64MiB", "--out", "r", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "All 1,437 examples of the data set fit" in done.stdout
    assert "Verified" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    saved = json.loads((tmp_path / "r/memory.json").read_text())
    assert saved["certificate"]["confidence"] == "verified"
    told = rightbatch("memory", "digits", "--no-verify", "--json", cwd=tmp_path)
    document = json.loads(told.stdout)
    assert document["certificate"]["confidence"] == "predicted"
    few = rightbatch(
        "memory", "digits", "--limit", "100KiB", "--out", "f", cwd=tmp_path
    )
    assert few.returncode == 2
    assert "not even one example" in few.stderr
    assert not (tmp_path / "f").exists()  # nothing was kept
