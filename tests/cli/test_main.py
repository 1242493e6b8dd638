"""Usage: one clear error, and nothing heavy imported for it."""

from pathlib import Path

import pytest

from cases import rightbatch
from rightbatch.cli.main import cli


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["tune", "digit"], 2, "did you mean 'digits'"),
        (["tune", "digits", "--budget", "soon"], 2, "not a duration"),
        (["tune", "digits", "--budget", "0.1"], 2, "at least 1 second"),
        (["tune", "digits", "--objective", "fame"], 2, "fame"),
        (["tune", "digits", "--objective", "energy"], 2, "--watts"),
        (["tune", "digits", "--out", "taken"], 1, "already holds a run"),
        (["tune", "digits", "--out", "a_file/x"], 1, "cannot write"),
        (["plan", "nothing.json"], 1, "cannot read"),
        (["report", "taken"], 1, "measurements.json"),
        (["train", "digits", "--plan", "a_file"], 1, "not JSON"),
        (["tnue", "digits"], 2, "Did you mean 'tune'"),
        (["tune"], 2, "JOB"),
    ],
)
def test_bad_arguments(
    arguments: list[str], status: int, message: str, tmp_path: Path
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "plan.json").write_text("precious")
    (tmp_path / "a_file").write_text("")
    done = rightbatch(*arguments, cwd=tmp_path)
    assert done.returncode == status, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "taken" / "plan.json").read_text() == "precious"


def test_help_has_a_whole_line_for_every_command(tmp_path: Path) -> None:
    done = rightbatch("--help", cwd=tmp_path)
    assert max(map(len, done.stdout.splitlines())) <= 80
    commands = done.stdout.split("Commands:")[1].split("JOB is")[0]
    rows = [line.split(maxsplit=1) for line in commands.strip().splitlines()]
    assert [name for name, _ in rows] == list(cli.commands)
    assert all(text.endswith(".") and not text.endswith("...") for _, text in rows)
