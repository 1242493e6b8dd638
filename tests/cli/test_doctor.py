"""The command `doctor`: this machine, in 80 columns or as JSON."""

import json
from pathlib import Path

from cases import rightbatch


def test_the_machine_is_described(tmp_path: Path) -> None:
    done = rightbatch("doctor", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("rightbatch   0.")
    told = rightbatch("doctor", "--json", cwd=tmp_path)
    assert json.loads(told.stdout)["cores"] >= 1
