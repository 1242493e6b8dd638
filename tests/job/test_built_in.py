"""Built-in jobs and the example have no findings."""

from pathlib import Path

import pytest

import rightbatch as rb


@pytest.mark.parametrize("name", ["digits", "stdlib_gpt"])
def test_built_in_jobs_are_sound(name: str) -> None:
    job = rb.load_job(name)
    assert rb.check(job).items == ()
    assert job.length > 1000


def test_the_example_is_sound() -> None:
    example = Path(__file__).parents[2] / "examples" / "own_job.py"
    assert rb.check(rb.load_job(str(example))).items == ()
    assert len(example.read_text().splitlines()) < 80
