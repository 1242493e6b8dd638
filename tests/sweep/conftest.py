"""One real study of a quick job, shared by the tests that read it."""

from pathlib import Path

import pytest

from rightbatch.sweep.batch_rate_study import Study
from rightbatch.sweep.studying import study
from studied_job import job


@pytest.fixture(scope="session")
def studied(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Study]:
    """Four trials, from a measuring of at most two seconds."""
    folder = tmp_path_factory.mktemp("studied") / "s"
    return folder, study(job(), folder, trials=4, budget_s=60.0)
