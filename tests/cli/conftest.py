"""One real tuning of digits, shared by the tests that read it."""

from pathlib import Path

import pytest

import rightbatch as rb
from cases import rightbatch


@pytest.fixture(scope="session")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """One real tuning of digits, shared by the tests that read it."""
    cwd = tmp_path_factory.mktemp("tuned")
    done = rightbatch("tune", "digits", "--budget", "20", "--out", "run", cwd=cwd)
    # On a busy machine its race may be too short, or too rough, for a verdict.
    decided = rb.Plan.load(cwd / "run" / "plan.json").decided
    assert done.returncode == (0 if decided else 3), done.stderr
    return cwd / "run", done.stdout
