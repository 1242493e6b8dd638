"""Whole numbers are taken from Python and numpy, and nothing else."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rightbatch as rb
from cases import regression_job
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
    return dataclasses.replace(regression_job(batch_size=SIXTEEN), **fields)


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


def plain_leaves(state: Any) -> list[Any]:
    if isinstance(state, dict):
        return [leaf for value in state.values() for leaf in plain_leaves(value)]
    if isinstance(state, (list, tuple)):
        return [leaf for value in state for leaf in plain_leaves(value)]
    return [state]


def parts_in_numpys_numbers() -> dict[str, Any]:
    sgd = torch.optim.SGD(MODEL.parameters(), lr=0.1)
    numbers = S.Hyperparameters(sgd, SIXTEEN)
    numbers.move(i64(32))
    decay = torch.optim.lr_scheduler.StepLR(sgd, 2)
    by_examples = S.ByExamples(decay, batch_size=SIXTEEN)
    by_examples.step(i64(8))
    adam = torch.optim.Adam(MODEL.parameters(), lr=0.1)
    controller = rb.Controller(
        S.Ramp(16, 64, 640), adam, SIXTEEN, largest=i64(64), multiple=i64(8)
    )
    controller(i64(320))
    return {
        "Hyperparameters": numbers,
        "ByExamples": by_examples,
        "Controller": controller,
        "Accumulator": rb.Accumulator(MODEL, loss, SGD, micro_batch=SIXTEEN),
        "SGD": sgd,
        "Adam": adam,
    }


@pytest.mark.parametrize("name", parts_in_numpys_numbers())
def test_states_hold_pythons_numbers(name: str, tmp_path: Path) -> None:
    """As ``torch.load`` takes no others by default."""
    state = parts_in_numpys_numbers()[name].state_dict()
    assert not any(isinstance(leaf, np.generic) for leaf in plain_leaves(state))
    torch.save(state, tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt", weights_only=True) == state


@pytest.mark.parametrize("kind", [np.float32, np.float16, np.float64])
def test_rates_and_decay_of_numpys_kinds_follow_the_batch(kind: Any) -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    adam = torch.optim.AdamW([weight], lr=kind(0.25), weight_decay=kind(0.5))
    assert rb.scale_hyperparameters(adam, batch_from=16, batch_to=64).lr == 2.0
    assert float(adam.param_groups[0]["lr"]) == 0.5
    assert float(adam.param_groups[0]["weight_decay"]) == 1.0
    sgd = torch.optim.SGD([weight], lr=kind(0.25))
    assert S.Hyperparameters(sgd, 16).move(64).lr == 4.0
    assert float(sgd.param_groups[0]["lr"]) == 1.0


@pytest.mark.parametrize("value", ["1", True, 0, float("nan"), float("inf")])
def test_a_norm_that_is_no_number_is_refused(value: Any) -> None:
    with pytest.raises(rb.SettingError, match="clip_norm must be positive"):
        rb.Accumulator(MODEL, loss, SGD, clip_norm=value)


def test_a_run_asked_for_in_numpys_numbers_is_written_and_gone_on_with(
    tmp_path: Path,
) -> None:
    asked: dict[str, Any] = {"batch_size": SIXTEEN, "examples": i64(64)}
    options: dict[str, Any] = {"micro_batch": i64(8), "clip_norm": f32(1)}
    rb.train(job(), out=tmp_path, **asked, **options)
    run = rb.train(job(), out=tmp_path, resume=True, **asked, **options)
    assert run.last.examples == 64
