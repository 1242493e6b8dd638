"""Whole numbers are taken from Python and numpy, and nothing else."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rightbatch as rb
from rightbatch.core.whole_number import whole_number
from rightbatch.training.settings import Settings


def test_integers_of_any_kind_are_taken() -> None:
    assert type(whole_number(np.int64(16), "batch_size")) is int
    assert whole_number(0, "workers", least=0) == 0


@pytest.mark.parametrize("value", [True, 2.0, "3", None, 0, -1])
def test_other_values_are_refused(value: Any) -> None:
    with pytest.raises(rb.SettingError, match="batch_size must be") as refused:
        whole_number(value, "batch_size")
    assert refused.value.fix == "batch_size=64"


S = rb.schedules


def i64(value: int) -> Any:
    """As it comes out of numpy, whatever is asked for."""
    return np.int64(value)


def f32(value: float) -> Any:
    return np.float32(value)


SIXTEEN = i64(16)
MODEL = torch.nn.Linear(3, 1)
SGD = torch.optim.SGD(MODEL.parameters(), lr=0.1)
DATA = (torch.zeros(64, 3),)


def loss(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    return model(batch[0]).square().mean()


def job(**fields: Any) -> rb.Job:
    return rb.Job(
        model=lambda: torch.nn.Linear(3, 1),
        loss=loss,
        data=DATA,
        optimizer=lambda params: torch.optim.SGD(params, lr=0.1),
        batch_size=SIXTEEN,
        **fields,
    )


TAKERS: dict[str, Callable[[], Any]] = {
    "Job": lambda: job(examples=SIXTEEN, seed=SIXTEEN, num_workers=i64(0)),
    "Constant": lambda: S.Constant(SIXTEEN),
    "Stages": lambda: S.Stages(((i64(0), SIXTEEN), (SIXTEEN, i64(32)))),
    "Ramp": lambda: S.Ramp(SIXTEEN, i64(32), i64(640)),
    "Anneal": lambda: S.Anneal(SIXTEEN, i64(32), i64(640)),
    "SignalToNoise": lambda: S.SignalToNoise(SIXTEEN, least=i64(1), most=SIXTEEN),
    "FollowNoise": lambda: S.FollowNoise(SIXTEEN, fraction=0.5, most=SIXTEEN),
    "InsteadOfDecay": lambda: S.InsteadOfDecay(SIXTEEN, S.Rate.cosine(640), SIXTEEN),
    "AlongRate": lambda: S.AlongRate(SIXTEEN, S.Rate.cosine(640), least=i64(2)),
    "Rate.cosine": lambda: S.Rate.cosine(i64(640), warmup=SIXTEEN),
    "Rate.steps": lambda: S.Rate.steps({0: 1.0, SIXTEEN: f32(0.5)}),
    "Settings": lambda: Settings(
        schedule=S.Constant(16),
        end=64.0,
        micro_batch=i64(8),
        largest=SIXTEEN,
        num_workers=i64(0),
    ),
}


@pytest.mark.parametrize("name", TAKERS)
def test_values_keep_pythons_integers(name: str) -> None:
    made = TAKERS[name]()
    assert "np." not in repr(made)
    plain = [getattr(made, field.name) for field in dataclasses.fields(made)]
    assert not any(isinstance(value, np.generic) for value in plain)


@pytest.mark.parametrize(
    "take",
    [
        lambda: rb.BatchStream(DATA, SIXTEEN, micro_batch=i64(8), seed=SIXTEEN),
        lambda: rb.data.BatchSampler(i64(64), SIXTEEN, seed=SIXTEEN),
        lambda: rb.data.ShardStream(range(64), SIXTEEN, micro_batch=i64(8)),
        lambda: rb.data.Pairs(np.arange(64) % 4, each=i64(2)),
        lambda: rb.data.Tokens(np.full(64, 3), budget=SIXTEEN, window=SIXTEEN),
        lambda: rb.data.Strata(np.arange(64) % 4, multiple=i64(4)),
        lambda: rb.Accumulator(MODEL, loss, SGD, micro_batch=SIXTEEN),
        lambda: rb.Controller(S.Constant(16), SGD, batch_size=SIXTEEN, largest=SIXTEEN),
        lambda: S.Hyperparameters(SGD, SIXTEEN).move(i64(32)),
        lambda: rb.scale_hyperparameters(SGD, batch_from=SIXTEEN, batch_to=SIXTEEN),
        lambda: rb.NoiseMonitor(
            torch.nn.Linear(3, 1), groups=i64(8), overhead=f32(0.02)
        ),
        lambda: rb.noise_scale(
            job(), budget_s=0.01, group_size=SIXTEEN, micro_batch=SIXTEEN, seed=SIXTEEN
        ),
    ],
)
def test_everything_public_takes_numpys_integers(take: Callable[[], Any]) -> None:
    assert take() is not None


def test_a_run_asked_for_in_numpys_numbers_is_written_and_gone_on_with(
    tmp_path: Path,
) -> None:
    asked: dict[str, Any] = {"batch_size": SIXTEEN, "examples": i64(64)}
    options: dict[str, Any] = {"micro_batch": i64(8), "clip_norm": f32(1)}
    rb.train(job(), out=tmp_path, **asked, **options)
    run = rb.train(job(), out=tmp_path, resume=True, **asked, **options)
    assert run.last.examples == 64
