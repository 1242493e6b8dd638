"""Built-in jobs and the example have no findings but what they were made for."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

import rightbatch as rb
from rightbatch.job.built_in import BUILT_IN, contrastive_digits, rare_class


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_jobs_are_sound(name: str) -> None:
    job = rb.load_job(name)
    meant = {"contrastive_digits": ["RB105"], "rare_class": ["RB601"]}
    assert [finding.code for finding in rb.check(job).items] == meant.get(name, [])
    assert job.length > 1000


def test_the_rare_class_is_rare() -> None:
    job: Any = rb.load_job("rare_class")
    share = (job.data[1] == rare_class.RARE).double().mean()
    assert 0.005 < share < 0.01


def test_the_contrastive_target_does_not_know_the_training_batch() -> None:
    job = rb.load_job("contrastive_digits")
    model = job.make_model()
    value = job.evaluated(model)
    assert value == dataclasses.replace(job, batch_size=8).evaluated(model)
    assert value == pytest.approx(math.log(contrastive_digits.HELD_OUT_PAIRS), abs=1)


@pytest.mark.parametrize("name", ["contrastive_digits", "rare_class"])
def test_a_few_steps_train(name: str, tmp_path: Path) -> None:
    job = rb.load_job(name)
    before = job.evaluated(job.make_model())
    run = rb.train(job, examples=50 * job.batch_size, out=tmp_path)
    assert run.last.metric is not None
    assert run.last.metric < before


def test_the_example_is_sound() -> None:
    example = Path(__file__).parents[2] / "examples" / "own_job.py"
    assert rb.check(rb.load_job(str(example))).items == ()
    assert len(example.read_text().splitlines()) < 80
