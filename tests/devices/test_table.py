"""What a run on a GPU writes into the page; one without a GPU writes nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from launching import environment

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "gpu.md"


def printed(code: str, folder: Path) -> str:
    """By a process of its own: pytest is not run within a test without harm."""
    start = f"import sys; sys.path.insert(0, {str(ROOT / 'benchmarks')!r})\n"
    done = subprocess.run(
        [sys.executable, "-c", f"{start}import pytest, devices\n{code}"],
        capture_output=True,
        text=True,
        env=environment(),
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# Where there is one, `make gpu` itself writes the page.
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_nothing_is_written(tmp_path: Path) -> None:
    before = PAGE.read_text()
    assert printed("devices.main()", tmp_path) == "not run: no CUDA device\n"
    assert PAGE.read_text() == before


def test_figures_and_outcomes_of_tests_become_the_table(tmp_path: Path) -> None:
    (tmp_path / "test_three.py").write_text(
        "import pytest\n"
        "def test_one(record_property):\n"
        "    record_property('watts', 300)\n"
        "    assert False\n"
        "def test_the_other():\n"
        "    pass\n"
        "def test_third():\n"
        "    pytest.skip('no meter')\n"
    )
    code = (
        "rows = devices.Rows()\n"
        "pytest.main(['-q', '-p', 'no:cacheprovider', 'test_three.py'], [rows])\n"
        "page = 'Before.' + devices.BEGIN + 'Not run.' + devices.END + 'After.'\n"
        "print([rows.rows, devices.with_table(page, devices.table(rows.rows, 'it'))])"
    )
    rows, page = ast.literal_eval(printed(code, tmp_path).splitlines()[-1])
    assert rows == [
        ("watts", "300", "failed"),
        ("the other", "", "passed"),
        ("third", "", "skipped: no meter"),
    ]
    assert "Not run" not in page
    assert "| watts | 300 | failed |\n| the other |  | passed |" in page
    assert page.startswith("Before.")
    assert page.endswith("After.")
