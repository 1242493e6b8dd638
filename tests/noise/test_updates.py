"""Optimizers as trainers wrap them, several at once, and closures that run once."""

import gc
import itertools
import math
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import rightbatch as rb
from cases import regression_job
from rightbatch.noise.monitor_settings import optimizers_in
from watched_loops import draws, perceptron, still, train, watch


class Wrapper(torch.optim.Optimizer):
    """An optimizer by class only, as accelerate's is."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner = inner

    @property
    def param_groups(self) -> Any:  # type: ignore[override]
        return self.inner.param_groups

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.inner.zero_grad(set_to_none)

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        return self.inner.step(closure)


class Both:
    """Several optimizers behind one ``step``, and no optimizer itself."""

    def __init__(self, *optimizers: Any) -> None:
        self.optimizers = list(optimizers)

    def zero_grad(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()


class Outer(torch.optim.Optimizer):
    """A whole optimizer of its own, which hands the update on."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        super().__init__(inner.param_groups, {})
        self.inner = inner

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        return self.inner.step(closure)


class Alone(torch.optim.Optimizer):
    """Never calls torch's ``__init__``, and updates by itself."""

    def __init__(self, parameters: Any) -> None:
        self.param_groups = [{"params": list(parameters)}]

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        """Nothing."""


def split(model: nn.Module) -> list[torch.optim.Optimizer]:
    matrices = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() != 2]
    return [
        torch.optim.Muon(matrices, lr=0.0, weight_decay=0.0),
        torch.optim.AdamW(others, lr=0.0),
    ]


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.0)


def plain_reading(
    steps: int = 12, make: Callable[[nn.Module], torch.optim.Optimizer] = still
) -> rb.NoiseScale:
    """In steps with a metric other examples are neighbours: the same optimizers."""
    model = perceptron()
    monitor = watch(model, optimizer := make(model))
    train(model, optimizer, draws(regression_job(), 16), steps)
    return monitor.read(window=10**6)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda m: Wrapper(still(m)),
        lambda m: Wrapper(Wrapper(still(m))),
        lambda m: Outer(still(m)),
        lambda m: Both(*split(m)),
        lambda m: Both(Wrapper(still(m))),
    ],
)
def test_wrapped_optimizers_are_seen(wrap: Callable[[nn.Module], Any]) -> None:
    model = perceptron()
    monitor = watch(model, optimizer := wrap(model))
    train(model, optimizer, draws(regression_job(), 16), 12)
    moments = any(
        "betas" in g for o in optimizers_in(optimizer) for g in o.param_groups
    )
    found = monitor.read(window=10**6)
    truth = plain_reading(make=adam if moments else still)
    assert found.steps == 12
    assert found.coverage.parameters == 1.0
    assert found.trace.value == pytest.approx(truth.trace.value, rel=1e-6)


def test_several_optimizers_make_one_step() -> None:
    model = perceptron()
    optimizers = split(model)
    monitor = watch(model, optimizers)
    train(model, Both(*optimizers), draws(regression_job(), 16), 40)  # type: ignore[arg-type]
    found = monitor.read(window=10**6)
    assert found.steps == monitor.counts.steps == 40
    assert found.trace.value == pytest.approx(
        plain_reading(40, adam).trace.value, rel=1e-6
    )
    # Adam's own metric is that of Adam's parameters alone.
    dominated = found.metrics["adam_curvature"].dominated_by
    assert {n for n, share in dominated.items() if share > 0} == {"0.bias", "2.bias"}
    monitor.close()  # of two on one model, the inner one takes the gradients over
    only = watch(model, optimizers[0])
    train(model, optimizers[0], draws(regression_job(), 16), 3)
    assert set(only.read().by_layer) == {"0", "2"}
    assert len(only._watched.parameters) == 2


def test_an_optimizer_whose_updates_nobody_sees_is_refused() -> None:
    model = perceptron()
    with pytest.raises(rb.SettingError, match="updates cannot be seen"):
        watch(model, Alone(model.parameters()))
    inner = still(model)
    assert optimizers_in(Both(Wrapper(inner)))[-1] is inner


@pytest.mark.parametrize("accumulated", [False, True])
@pytest.mark.parametrize("kind", ["adamw", "wrapped", "keyword"])
def test_a_closure_that_runs_once_is_a_step(kind: str, *, accumulated: bool) -> None:
    model = perceptron()
    optimizer: Any = torch.optim.AdamW(model.parameters(), lr=0.0)
    if kind == "wrapped":
        optimizer = Wrapper(optimizer)
    monitor = watch(model, optimizer)
    for x, y in itertools.islice(draws(regression_job(), 16), 12):

        def closure(x: Any = x, y: Any = y) -> Any:
            optimizer.zero_grad()
            parts = zip(x.chunk(2), y.chunk(2), strict=True)
            for one, target in parts if accumulated else [(x, y)]:
                loss = (model(one) - target).square().mean() / (1 + accumulated)
                loss.backward()
            return loss

        returned = (
            optimizer.step(closure=closure)
            if kind == "keyword"
            else optimizer.step(closure)
        )
        assert returned is not None
    found = monitor.read(window=10**6)
    assert found.steps == 12 - accumulated  # the first accumulated step teaches
    assert found.source.startswith("micro" if accumulated else "groups inside")
    if not accumulated:
        truth = plain_reading(make=adam).trace.value
        assert found.trace.value == pytest.approx(truth, rel=1e-6)


def test_updates_inside_the_backward_pass_are_told() -> None:
    model = perceptron()
    monitor = watch(model)
    for p in model.parameters():
        optimizer = torch.optim.SGD([p], lr=0.0)
        p.register_post_accumulate_grad_hook(lambda _, o=optimizer: o.step())
    with pytest.warns(UserWarning, match="inside the backward pass"):
        for x, y in itertools.islice(draws(regression_job(), 16), 3):
            (model(x) - y).square().mean().backward()
    assert monitor.read().steps == 0


def test_un_freezing_and_new_groups_are_watched_from_then_on() -> None:
    job, model = regression_job(), perceptron()
    assert isinstance(model, nn.Sequential)
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.0)
    monitor = watch(model, optimizer)
    train(model, optimizer, draws(job, 16), 5)
    assert set(monitor.read().by_layer) == {"2"}
    model[0].requires_grad_(True)
    assert monitor.read().coverage.parameters == 1.0  # nobody trains it
    optimizer.add_param_group({"params": list(model[0].parameters())})
    now = monitor.read().coverage
    assert now.parameters == pytest.approx(17 / 113)
    assert set(now.missing) == {"0.weight", "0.bias"}
    train(model, optimizer, draws(job, 16), 12)
    found = monitor.read(window=10**6)
    assert found.steps == 12
    assert found.coverage.parameters == 1.0
    assert set(found.by_layer) == {"0", "2"}
    assert found.trace.value == pytest.approx(plain_reading().trace.value, rel=1e-6)
    model[2].requires_grad_(False)
    optimizer.zero_grad()
    train(model, optimizer, draws(job, 16), 3)
    assert set(monitor.read(window=10**6).by_layer) == {"0"}


def test_a_monitor_that_is_collected_within_an_update_breaks_no_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Torch is going through its hooks just then."""
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    lost: list[Any] = [rb.NoiseMonitor(model, optimizer, math.inf)]
    gone = weakref.ref(lost[0])
    kept = [rb.NoiseMonitor(model, optimizer, math.inf) for _ in range(2)]
    whole = rb.NoiseMonitor._before_update

    def collecting(self: rb.NoiseMonitor, *args: Any) -> Any:
        if lost:
            lost.clear()
            gc.collect()
        return whole(self, *args)

    monkeypatch.setattr(rb.NoiseMonitor, "_before_update", collecting)
    for _ in range(3):
        model(torch.randn(4, 2)).square().mean().backward()
        optimizer.step()
    gc.collect()
    assert gone() is None
    for monitor in kept:
        monitor.close()
