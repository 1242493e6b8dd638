"""The examples that feed data run as they stand, without a network."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import feeding

EXAMPLES = Path(feeding.__file__).parent.parent / "examples"


def run(name: str) -> subprocess.CompletedProcess[str]:
    offline = {"OMP_NUM_THREADS": "1", "HF_DATASETS_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, str(EXAMPLES / name)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, **offline},
    )


@pytest.mark.parametrize(
    ("name", "last_line"),
    [
        ("rows_on_disk.py", "20000 rows in 185 steps"),
        ("hugging_face_data.py", "alike: True"),
    ],
)
def test_an_example_runs_or_names_what_is_missing(name: str, last_line: str) -> None:
    done = run(name)
    if name.startswith("hugging") and importlib.util.find_spec("datasets") is None:
        assert done.returncode == 1
        assert "pip install datasets" in done.stderr
        assert "Traceback" not in done.stderr
        return
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1].endswith(last_line)
