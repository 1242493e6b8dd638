"""Several optimizers as one: what they hold, and what is refused."""

from __future__ import annotations

import copy
import functools
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

import rightbatch as rb
from cases import regression_job
from rightbatch.core.torch_private import has_scheduler
from rightbatch.job.several_optimizers import (
    SeveralOptimizers,
    as_one,
    members_of,
    optimizer_name,
)


def pair() -> tuple[nn.Linear, torch.optim.SGD, torch.optim.AdamW, SeveralOptimizers]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    sgd = torch.optim.SGD([model.weight], lr=0.1, momentum=0.9)
    adam = torch.optim.AdamW([model.bias], lr=0.01)
    return model, sgd, adam, SeveralOptimizers([sgd, adam])


def stepped(model: nn.Module, optimizer: Any) -> None:
    model(torch.ones(4, 3)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_it_steps_as_its_members_and_shows_what_they_hold() -> None:
    model, sgd, adam, both = pair()
    other, *apart, _ = pair()
    heard: list[Any] = []
    both.register_step_pre_hook(lambda o, *_: heard.append(("pre", o, len(o.state))))
    both.register_step_post_hook(lambda o, *_: heard.append(("post", o, len(o.state))))
    for _ in range(3):
        stepped(model, both)
        other(torch.ones(4, 3)).square().sum().backward()
        for optimizer in apart:
            optimizer.step()
            optimizer.zero_grad()
    assert torch.equal(model.weight, other.weight)
    assert torch.equal(model.bias, other.bias)
    assert heard[:2] == [("pre", both, 0), ("post", both, 2)]
    assert both.param_groups == [*sgd.param_groups, *adam.param_groups]
    assert set(both.state) == {model.weight, model.bias}
    assert both.state[model.bias] is adam.state[model.bias]
    unknown = nn.Parameter(torch.zeros(1))
    assert both.state.get(unknown, {}) == {}
    assert unknown not in adam.state  # a default dictionary would have made one
    adam.add_param_group({"params": [unknown]})
    assert len(both.param_groups) == 3


def test_its_state_goes_on_bit_for_bit() -> None:
    model, _, _, both = pair()
    stepped(model, both)
    saved = copy.deepcopy(both.state_dict())  # what is loaded is written into
    weights = copy.deepcopy(model.state_dict())
    other, *_, fresh = pair()
    other.load_state_dict(weights)
    fresh.load_state_dict(saved)
    for _ in range(2):
        stepped(model, both)
        stepped(other, fresh)
    assert torch.equal(model.weight, other.weight)
    assert torch.equal(model.bias, other.bias)
    with pytest.raises(rb.SettingError, match="another number of optimizers"):
        fresh.load_state_dict(fresh.members[0].state_dict())


@pytest.mark.parametrize(
    "make",
    [
        lambda o: lr_scheduler.LambdaLR(o, lambda n: 0.5**n),
        lambda o: lr_scheduler.CosineAnnealingLR(o, 5),
        lambda o: lr_scheduler.SequentialLR(
            o,
            [lr_scheduler.LinearLR(o, 0.1, 1.0, 3), lr_scheduler.ExponentialLR(o, 0.5)],
            [3],
        ),
    ],
)
def test_one_scheduler_of_all_is_one_of_each(make: Any) -> None:
    model, _, _, both = pair()
    lone = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.01)
    scheduler = make(both)
    reference = make(lone)
    for _ in range(6):
        stepped(model, both)
        lone.step()
        scheduler.step()
        reference.step()
        rate = lone.param_groups[0]["lr"]
        assert [group["lr"] for group in both.param_groups] == pytest.approx(
            [10 * rate, rate]
        )


def test_what_cannot_be_one_is_refused() -> None:
    model, sgd, adam, both = pair()
    assert as_one(sgd) is sgd
    assert as_one([adam]) is adam
    assert members_of(both) == (sgd, adam)
    assert optimizer_name(both) == "SGD + AdamW"
    for wrong in ([], [sgd, "adam"], "adam", None, {"a": sgd}):
        with pytest.raises(rb.SettingError):
            as_one(wrong)
    with pytest.raises(rb.SettingError, match="belongs to two") as caught:
        as_one([sgd, torch.optim.AdamW(model.parameters())])
    assert "(2, 3)" in caught.value.seen
    with pytest.raises(rb.SettingError, match="one of the optimizers"):
        both.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
    with pytest.raises(rb.SettingError, match="no closure"):
        both.step(lambda: 0.0)


def named(named_params: Any) -> list[torch.optim.Optimizer]:
    pairs = list(named_params)
    assert [name for name, _ in pairs] == ["weight"]
    return [torch.optim.SGD([p for _, p in pairs], lr=0.1)]


def partly(named_params: Any, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for _, p in named_params], lr=lr)


class Maker:
    def __call__(self, named_params: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(named_params, lr=0.1)  # torch takes names too


@pytest.mark.parametrize(
    "make", [named, functools.partial(partly, lr=0.1), Maker(), torch.optim.SGD]
)
def test_a_job_gives_names_to_a_function_that_asks_for_them(make: Any) -> None:
    job = regression_job(optimizer=make)
    (group,) = job.make_optimizer(job.make_model()).param_groups
    assert [p.shape for p in group["params"]] == [(1, 5)]


def hidden(params: Any) -> list[torch.optim.Optimizer]:
    first = torch.optim.SGD(params, lr=0.1)
    second = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    lr_scheduler.StepLR(second, 3)
    return [first, second]


def test_a_job_refuses_what_is_no_optimizer_and_a_hidden_scheduler() -> None:
    model = nn.Linear(5, 1, bias=False)
    for wrong in (None, [], [None], "sgd"):
        with pytest.raises(rb.JobError, match="optimizer"):
            regression_job(optimizer=lambda _, w=wrong: w).make_optimizer(model)
    twice = regression_job(
        optimizer=lambda p: [torch.optim.SGD(p), torch.optim.Adam(p)]
    )
    with pytest.raises(rb.JobError, match="belongs to two"):
        twice.make_optimizer(model)
    with pytest.raises(rb.JobError, match="inside optimizer="):
        regression_job(optimizer=hidden).make_optimizer(model)
    _, _, adam, both = pair()
    assert not has_scheduler(both)
    lr_scheduler.StepLR(adam, 3)
    assert has_scheduler(both)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda several: pickle.loads(pickle.dumps(several))]
)
def test_a_copy_is_of_the_members_and_leaves_the_others_as_they_are(
    copied: Any,
) -> None:
    layer = torch.nn.Linear(3, 2)
    both = SeveralOptimizers(
        [torch.optim.SGD([layer.weight], lr=1.0), torch.optim.SGD([layer.bias], lr=2.0)]
    )
    other = copied(both)
    assert [group["lr"] for group in other.param_groups] == [1.0, 2.0]
    assert other.members[0] is not both.members[0]
    before = layer.bias.detach().clone()
    layer(torch.ones(1, 3)).sum().backward()
    both.step()
    assert torch.equal(layer.bias, before - 2.0)
