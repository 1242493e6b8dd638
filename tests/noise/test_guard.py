"""An error of ours in any hook: the user's step goes on bit for bit as without us.

Weights move on a grid and inputs are whole numbers, so that every sum is exact in
double precision, and the order of summation, another one in a measured step, no excuse.
"""

import itertools
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rightbatch as rb
from cases import regression_job
from rightbatch.noise import guard, updates
from rightbatch.noise.micro_batches import MicroBatches
from rightbatch.noise.overhead import Budget
from rightbatch.noise.record import Record
from rightbatch.noise.statistics.optimizer_metric import OptimizerMetrics
from rightbatch.noise.updates import Updates
from rightbatch.noise.within_batch import WithinBatch
from watched_loops import draws, perceptron, still, train, watch

STEPS = 10


class OnGrid(torch.optim.Optimizer):
    """Weights are multiples of 1/16, whatever the gradient."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"betas": (0.9, 0.99), "eps": 1e-8})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for p in self.param_groups[0]["params"]:
            assert p.grad is not None
            state = self.state[p]
            state.setdefault("step", 0)
            state["step"] += 1
            state["exp_avg_sq"] = torch.ones_like(p)
            p -= (p.grad / 64).round().clamp(-8, 8) / 16
        return loss


def loop(form: str, *, watched: bool) -> tuple[Tensor, rb.NoiseMonitor | None]:
    """Ten steps; the weights after them."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randint(-2, 3, p.shape, generator=generator))
    optimizer = OnGrid(model.parameters())
    monitor = watch(model, optimizer) if watched else None
    for _ in range(STEPS):
        x = torch.randint(-3, 4, (8, 5), generator=generator).double()
        optimizer.zero_grad()
        parts = x.chunk(2 if form == "accumulated" else 1)

        def passes(parts: tuple[Tensor, ...] = parts) -> None:
            for part in parts:
                (model(part) - part[:, :3]).square().sum().backward()

        if form == "closure":
            optimizer.step(passes)
        else:
            passes()
            optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()]), monitor


# Whatever torch calls while a step is made, and what these call, by the loop's form.
ENTRIES: list[tuple[str, type, str]] = [
    ("plain", rb.NoiseMonitor, "_before_forward"),
    ("plain", rb.NoiseMonitor, "_after_forward"),
    ("plain", rb.NoiseMonitor, "_before_update"),
    ("plain", rb.NoiseMonitor, "_finish_step"),
    ("plain", WithinBatch, "begin"),
    ("plain", WithinBatch, "forward_begins"),
    ("plain", WithinBatch, "forward_ends"),
    ("plain", WithinBatch, "finish"),
    ("plain", Updates, "concern"),
    ("plain", Budget, "step"),
    ("plain", Record, "add"),
    ("plain", OptimizerMetrics, "_observe"),
    ("closure", rb.NoiseMonitor, "_after_update"),
    ("closure", Updates, "begin"),
    ("closure", Updates, "end"),
    ("accumulated", MicroBatches, "_gradient_arrived"),
    ("accumulated", MicroBatches, "begin"),
    ("accumulated", MicroBatches, "finish"),
    ("accumulated", OptimizerMetrics, "_observe"),
]


@pytest.fixture
def as_users_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "strict", False)


@pytest.mark.usefixtures("as_users_run")
@pytest.mark.parametrize(
    ("error", "good"), [(TypeError, 0), (RuntimeError, 3), (torch.OutOfMemoryError, 1)]
)
@pytest.mark.parametrize(("form", "owner", "name"), ENTRIES)
def test_an_error_in_a_hook_never_reaches_the_step(
    form: str,
    owner: type,
    name: str,
    error: type[Exception],
    good: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Monitors of other tests, whose methods would be broken too, are told of nothing.
    monkeypatch.setattr(updates, "followers", weakref.WeakSet())
    plain, _ = loop(form, watched=False)
    whole, calls = getattr(owner, name), itertools.count()
    fired = []

    def broken(*args: Any, **kwargs: Any) -> Any:
        if next(calls) < good:
            return whole(*args, **kwargs)
        fired.append(name)
        raise error("broken on purpose")

    monkeypatch.setattr(owner, name, broken)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        weights, monitor = loop(form, watched=True)
    assert monitor is not None
    monitor.close()
    assert fired
    assert torch.equal(weights, plain)
    assert torch._C._len_torch_function_stack() == 0
    # Where all parameters are lost, that there is nothing to report is told as well.
    messages = [str(w.message) for w in told if "please report" in str(w.message)]
    assert len(messages) == 1, messages
    message = messages[0]
    assert f"{error.__name__}: broken on purpose, test_guard.py" in message
    found = monitor.read(window=10**6)
    lost = found.problem if monitor.guard.stopped else str(monitor.guard.lost)
    assert "broken on purpose" in lost
    if name == "_observe":  # a metric is lost, not the noise
        assert found.steps >= STEPS - 2
        assert not found.metrics
    elif name == "_gradient_arrived":
        assert found.coverage.parameters == 0.0
        assert len(found.coverage.missing) == 4
    else:
        assert len(fired) == 1
        assert monitor.guard.stopped


def test_a_monitor_without_errors_changes_nothing() -> None:
    for form in ("plain", "closure", "accumulated"):
        plain, _ = loop(form, watched=False)
        weights, monitor = loop(form, watched=True)
        assert monitor is not None
        assert monitor.read(window=10**6).steps >= STEPS - 1
        assert torch.equal(weights, plain)


@pytest.mark.usefixtures("as_users_run")
def test_one_parameter_is_lost_and_the_others_are_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = MicroBatches._gradient_arrived

    def broken(self: MicroBatches, index: int, gradient: Tensor) -> None:
        if index == 0:
            raise IndexError("broken on purpose")
        whole(self, index, gradient)

    job, found = regression_job(), []
    for lost in (False, True):
        model = perceptron()
        monitor = watch(model, optimizer := still(model))
        if lost:
            monkeypatch.setattr(MicroBatches, "_gradient_arrived", broken)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            train(model, optimizer, draws(job, 16), 6, accumulation=4)
        found.append(monitor.read())
    whole_read, rest = found
    assert list(rest.coverage.missing) == ["0.weight"]
    assert rest.coverage.parameters == pytest.approx(1 - 80 / 113)
    assert rest.by_layer["2"].trace.value == whole_read.by_layer["2"].trace.value
    assert rest.trace.value < whole_read.trace.value


@pytest.mark.usefixtures("as_users_run")
def test_where_warnings_are_errors_they_stop_nobody(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any) -> Any:
        raise KeyError("broken on purpose")

    monkeypatch.setattr(rb.NoiseMonitor, "_begin_step", broken)
    loop("plain", watched=True)  # the tests' own filter makes warnings errors
    assert "broken on purpose" in capsys.readouterr().err


def test_our_own_tests_see_errors_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise KeyError("broken on purpose")

    monkeypatch.setattr(MicroBatches, "_gradient_arrived", broken)
    with pytest.raises(KeyError, match="broken on purpose"):
        loop("accumulated", watched=True)


@pytest.mark.usefixtures("as_users_run")
def test_an_error_of_the_users_code_is_the_users(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = perceptron()
    monitor = watch(model, optimizer := still(model))

    def closure() -> float:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        optimizer.step(closure)
    with pytest.raises(RuntimeError, match="shapes"):
        model(torch.zeros(2, 3))
    assert not monitor.guard.stopped
