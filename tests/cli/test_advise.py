"""The command that says a batch from published laws: its lines and exit statuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from cases import rightbatch
from rightbatch.cli.main import cli

SIZES = ["advise", "--parameters", "300M", "--tokens", "6B"]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([*SIZES, "--sequence", "2048"], 0, "222,000 to 2.58 M tokens, 108 to 1,260"),
        (["advise", "--parameters", "70B", "--tokens", "15T"], 3, "batch none"),
        (["advise", "--model", "convolution"], 3, "not a law"),
        (["advise", "--task", "fine-tuning"], 0, "8 to 40 examples"),
    ],
)
def test_the_lines_and_the_status(
    arguments: list[str], status: int, message: str
) -> None:
    done = CliRunner().invoke(cli, arguments, standalone_mode=False)
    assert done.return_value == status
    lines = done.output.splitlines()
    assert max(map(len, lines)) <= 80
    assert "nothing was measured" in lines[0]
    text = " ".join(done.output.split())
    assert message in text
    assert text.count("seen at") == (8 if "--parameters" in arguments else status + 1)
    assert "rightbatch tune JOB" in text


def test_one_document_and_refusals(tmp_path: Path) -> None:
    told = rightbatch(*SIZES, "--json", cwd=tmp_path)
    document = json.loads(told.stdout)
    assert document["status"] == told.returncode == 0
    assert document["advice"]["high"] > document["advice"]["low"] > 1e5
    wrong = rightbatch("advise", "--parameters", "many", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "not a count" in wrong.stderr
