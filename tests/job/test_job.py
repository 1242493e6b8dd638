"""A job's fields are checked, and its batches are the examples asked for."""

import math
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rightbatch as rb
from cases import regression_job


class Pairs:
    """A map-style dataset of dictionaries."""

    def __len__(self) -> int:
        return 30

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"x": torch.full((3,), float(i)), "name": str(i)}


def test_datasets_and_collate_functions() -> None:
    common: dict[str, Any] = {
        "model": lambda: nn.Linear(3, 1),
        "loss": lambda model, batch: model(batch["x"]).mean(),
        "data": Pairs(),
        "optimizer": lambda params: torch.optim.SGD(params, lr=0.1),
        "batch_size": 4,
    }
    batch = rb.Job(**common).batch([3, 1], torch.device("cpu"))
    assert batch["x"][:, 0].tolist() == [3.0, 1.0]
    own = rb.Job(**common, collate=lambda items: {"n": len(items)})
    assert own.batch([3, 1], torch.device("cpu")) == {"n": 2}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "at least 1"),
        ({"batch_size": 2.5}, "integer"),
        ({"batch_size": True}, "integer"),
        ({"goal": "up"}, "goal"),
        ({"precision": "float16"}, "precision"),
        ({"target": 1.0}, "evaluate"),
        ({"loss": 3}, "loss must be a function"),
        ({"data": (torch.zeros(3), torch.zeros(4))}, "differ"),
        ({"data": ([1, 2],)}, "tuple must hold tensors"),
        ({"data": iter([1])}, "map-style"),
        ({"collate": lambda x: x}, "no effect"),
        ({"rate": 0.1}, "rate must be"),
        ({"clip_norm": 0.0}, "clip_norm must be positive"),
        ({"epochs": 0}, "epochs must be positive"),
        ({"num_workers": -1}, "at least 0"),
        ({"num_workers": 2}, "no effect on a tuple"),
        ({"seed": 1.5}, "seed must be an integer"),
        ({"seed": "1"}, "seed must be an integer"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"seed": 10**30}, "seed is larger"),
        ({"evaluate": abs, "target": "x"}, "target must be a finite number"),
        ({"evaluate": abs, "target": math.nan}, "target must be a finite number"),
        ({"evaluate": abs, "target": [0.1]}, "target must be a finite number"),
        ({"evaluate": 0.1}, "evaluate must be a function"),
        ({"device": "xyz"}, "no such device"),
        ({"device": ["cpu"]}, "no such device"),
        ({"device": "cpu:x"}, "no such device"),
        ({"name": 5}, "name must be text"),
        ({"example": None}, "example must be text"),
    ],
)
def test_bad_fields_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(rb.SettingError, match=message):
        replace(regression_job(), **change)


@pytest.mark.parametrize(
    "value",
    [torch.ones(2), np.ones(3), None, "0.5", 1j, [1.0], {"loss": 1.0}, 10**400],
)
def test_an_evaluation_that_is_no_number_is_the_jobs_error(value: Any) -> None:
    job = regression_job(evaluate=lambda model: value)
    with pytest.raises(rb.JobError, match="not a number"):
        job.evaluated(job.make_model())


@pytest.mark.parametrize("value", [0.5, np.float64(0.5), torch.tensor([[0.5]])])
def test_an_evaluation_may_be_any_number(value: Any) -> None:
    job = regression_job(evaluate=lambda model: value, target=np.float64(0.1))
    assert job.evaluated(job.make_model()) == 0.5


def test_a_device_that_is_not_there_is_the_jobs_error() -> None:
    job = regression_job(device="cuda:77")
    with pytest.raises(rb.JobError, match="cannot be moved to device 'cuda:77'"):
        job.make_model()


def test_a_data_set_without_a_length_is_told_with_its_line() -> None:
    class Far(Pairs):
        def __len__(self) -> int:
            raise OSError("no network")

    with pytest.raises(rb.JobError, match=r"len\(data\) raised OSError") as failed:
        replace(regression_job(), data=Far())
    assert "no network" in failed.value.seen
    assert "test_job.py" in failed.value.seen


def test_the_length_of_todays_run() -> None:
    job = regression_job(examples=300)
    assert job.run_examples is None
    assert replace(job, examples=1000).run_examples == 1000.0
    assert replace(job, epochs=1.5).run_examples == 450.0
    assert replace(job, epochs=0.001).run_examples == 1.0
    with pytest.raises(rb.SettingError, match="not both"):
        replace(job, examples=1000, epochs=2)


def with_scheduler(params: Any) -> torch.optim.Optimizer:
    optimizer = torch.optim.SGD(params, lr=0.1)
    torch.optim.lr_scheduler.LinearLR(optimizer, 1e-3, total_iters=100)
    return optimizer


class Remembering(nn.Linear):
    """Keeps its last output."""

    def forward(self, input: Tensor) -> Tensor:
        self.last = super().forward(input)
        return self.last


def remembering() -> nn.Module:
    model = Remembering(3, 1)
    model(torch.zeros(2, 3))
    return model


def normed() -> nn.Module:
    model = torch.nn.utils.weight_norm(nn.Linear(3, 1))
    model(torch.zeros(2, 3))
    return model


def locked() -> nn.Module:
    model = nn.Linear(3, 1)
    model.register_forward_hook(Locked())
    return model


class Locked:
    """A hook that writes from several threads."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __call__(self, *args: Any) -> None: ...


def generating() -> nn.Module:
    model = nn.Linear(3, 1)
    model.batches = (i for i in range(3))  # pyrefly: ignore
    return model


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("make", [remembering, normed, locked, generating])
def test_a_module_that_cannot_be_copied_is_refused(make: Any) -> None:
    job = replace(regression_job(), model=make())
    with pytest.raises(rb.JobError, match="cannot be copied") as refused:
        job.make_model()
    assert "Job(model=make_model)" in refused.value.fix
    assert "cannot be copied" in str(rb.check(job))
    assert replace(job, model=make).make_model().training  # as the fix says


def test_memory_that_runs_out_in_a_copy_is_memory() -> None:
    class Large(nn.Linear):
        def __deepcopy__(self, memo: Any) -> Any:
            raise MemoryError

    with pytest.raises(MemoryError):
        replace(regression_job(), model=Large(3, 1)).make_model()


@pytest.mark.parametrize("device", [None, "cpu"])
def test_a_model_on_meta_is_refused_before_it_is_moved(device: str | None) -> None:
    def make() -> nn.Module:
        with torch.device("meta"):
            return nn.Linear(3, 1)

    job = replace(regression_job(), model=make, device=device)
    named = pytest.raises(rb.JobError, match="on the meta device")
    with named as refused:
        job.make_model()
    assert refused.value.seen.startswith(
        "2 of 2 parameters and buffers, such as weight"
    )
    assert "on the meta device" in str(rb.check(job))


def test_a_scheduler_inside_the_optimizer_is_found() -> None:
    job = regression_job(optimizer=with_scheduler)
    uses: tuple[Callable[[rb.Job], Any], ...] = (
        lambda job: rb.train(job, epochs=1),
        rb.tune,
        lambda job: rb.check(job).raise_errors(),
    )
    for use in uses:
        with pytest.raises(rb.JobError, match="inside optimizer=") as caught:
            use(job)
        assert "Job(rate=" in str(caught.value)
        assert "lr 0.0001" in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "form"),
    [
        ({"loss": nn.functional.cross_entropy}, "loss=lambda model, batch"),
        ({"loss": lambda output, y: (output - y).square().mean()}, "the model itself"),
        ({"loss": lambda batch: batch[0].mean()}, "loss=lambda model, batch"),
        (
            {"optimizer": lambda model: torch.optim.SGD(model.parameters(), lr=0.1)},
            "optimizer=lambda params",
        ),
    ],
)
def test_a_function_of_other_arguments_is_told_the_right_ones(
    changed: dict[str, Any], form: str
) -> None:
    findings = rb.check(replace(regression_job(), **changed))
    assert form in findings.errors[0].fix
