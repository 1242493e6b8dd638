"""A monitor in people's own loops: the pitfalls of others, and bad input."""

import copy
import itertools
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rightbatch as rb
from cases import regression_job
from rightbatch.memory.live_bytes import LiveBytes
from watched_loops import Deep, draws, perceptron, still, train, watch


def test_the_clock_counts_examples() -> None:
    job, model = regression_job(), perceptron()
    monitor = watch(model, optimizer := still(model))
    source = draws(job, 8)
    train(model, optimizer, source, 30)
    train(model, optimizer, draws(job, 32), 30)
    found = monitor.read(window=32 * 10)
    assert found.steps == 11  # those at 960 - 320 ... 960 examples of 32
    assert found.window == 320
    assert found.age == 160
    assert found.batch_size == 32
    # A step of 32 examples counts as four of 8.
    weights = [b.weight for b in monitor.history.blocks]
    assert set(weights) == {8, 32}


def test_estimators_that_mix_steps_are_wrong_while_training() -> None:
    # Momentum at a high rate on a quadratic: the weights swing, so the mean of ten
    # steps' gradients is far smaller than any of them. Truth at every step.
    job = regression_job(examples=512)
    inputs, targets = job.data
    model = nn.Linear(5, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.06, momentum=0.9)
    monitor = watch(model, optimizer)
    mixed, batch, recent = [], 16, []
    ours, truths = [], []
    for step, (x, y) in enumerate(itertools.islice(draws(job, batch), 400)):
        optimizer.zero_grad()
        with torch.no_grad():  # every example's gradient
            rows = 2 * (model(inputs) - targets) * inputs
        (model(x) - y).square().mean().backward()
        assert model.weight.grad is not None
        recent.append(model.weight.grad.flatten().clone())
        optimizer.step()
        if step < 100 or len(recent) < 10:
            continue
        signal = rows.mean(0).square().sum()
        truths.append([signal, (rows - rows.mean(0)).square().sum(1).mean()])
        small = float(torch.stack([g @ g for g in recent[-10:]]).mean())
        mean = torch.stack(recent[-10:]).mean(0)
        big = float(mean @ mean)
        mixed.append(((10 * big - small) / 9, (small - big) * batch / 0.9))
        block = monitor.history.blocks[-1]
        weight = block.weight
        ours.append((block.signal.sum() / weight, block.noise.sum() / weight))

    def scale(pairs: Any) -> float:
        signal, noise = np.mean(np.array(pairs), 0)
        return noise / signal if signal > 0 else math.inf

    assert scale(ours) == pytest.approx(scale(truths), rel=0.3)
    assert scale(mixed) > 2 * scale(truths)


def test_sum_and_mean_losses_give_the_same_scale() -> None:
    job, found = regression_job(), []
    for reduction in ("mean", "sum"):
        model = perceptron()
        monitor = watch(model, optimizer := still(model))
        train(model, optimizer, draws(job, 16), 20, reduction=reduction)
        found.append(monitor.read())
    mean, total = found
    assert mean.noise_scale.value == pytest.approx(total.noise_scale.value, rel=1e-4)
    assert total.trace.value == pytest.approx(mean.trace.value * 16**2, rel=1e-4)


def test_unequal_token_counts_add_at_most_one_example() -> None:
    # A token mean over ragged sequences: contributions weigh as their lengths. The
    # truth is the spread of s_b - c_b G around it; ignoring that costs cv(c)^2 < 1.
    torch.manual_seed(0)
    model, n, longest = nn.Linear(3, 4), 400, 6
    x, y = torch.randn(n, longest, 3), torch.randint(0, 4, (n, longest))
    lengths = torch.randint(1, longest + 1, (n,))
    y[torch.arange(longest) >= lengths[:, None]] = -100
    rows = []
    for b in range(n):
        loss = F.cross_entropy(model(x[b]), y[b], ignore_index=-100, reduction="sum")
        grads = torch.autograd.grad(loss, list(model.parameters()))
        rows.append(torch.cat([g.flatten() for g in grads]))
    sums = torch.stack(rows)
    mean = sums.sum(0) / lengths.sum()
    residual = (sums - lengths[:, None] * mean) / lengths.float().mean()
    truth = float(residual.square().sum(1).mean() / mean.square().sum())
    monitor = watch(model, optimizer := still(model), groups="examples")
    generator = torch.Generator().manual_seed(1)
    for _ in range(3000):
        index = torch.randint(n, (16,), generator=generator)
        optimizer.zero_grad()
        out = model(x[index]).flatten(0, 1)
        F.cross_entropy(out, y[index].flatten(), ignore_index=-100).backward()
        optimizer.step()
    found = monitor.read(window=10**6).noise_scale
    assert found.low - 1 <= truth <= found.high
    assert found.value == pytest.approx(truth, rel=0.25, abs=1)


class Scaler:
    """Doubles its factor every few steps, as torch's does on a GPU."""

    def __init__(self) -> None:
        self.factor, self.steps = 1024.0, 0

    def get_scale(self) -> float:
        return self.factor

    def update(self) -> None:
        self.steps += 1
        self.factor *= 2 if self.steps % 5 == 0 else 1


def test_a_changing_loss_scale_is_divided_out() -> None:
    job, found = regression_job(), []
    for scaler in (None, Scaler()):
        model = perceptron()
        monitor = watch(model, optimizer := still(model), grad_scaler=scaler)
        for x, y in itertools.islice(draws(job, 16), 20):
            optimizer.zero_grad()
            factor = 1.0 if scaler is None else scaler.get_scale()
            ((model(x) - y).square().mean() * factor).backward()
            optimizer.step()
            if scaler is not None:
                scaler.update()
        found.append(monitor.read())
    assert found[0].trace.value == pytest.approx(found[1].trace.value, rel=1e-4)
    assert str(found[0].noise_scale) == str(found[1].noise_scale)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_broken_gradients_are_skipped_and_counted(bad: float) -> None:
    job, model = regression_job(), perceptron()
    monitor = watch(model, optimizer := still(model))
    for k, (x, y) in enumerate(itertools.islice(draws(job, 16), 12)):
        optimizer.zero_grad()
        target = torch.full_like(y, bad) if k in (3, 7) else y
        (model(x) - target).square().mean().backward()
        weights = copy.deepcopy(model.state_dict())
        optimizer.step()  # 0 times NaN is NaN
        model.load_state_dict(weights)
    found = monitor.read()
    assert found.skipped == 2
    assert monitor.counts.measured == 10
    assert found.trace.value > 0
    assert monitor.log()["noise/skipped"] == 2.0


def test_clipping_comes_after_measuring() -> None:
    job, found = regression_job(), []
    for accumulation, clip in itertools.product((1, 4), (None, 1e-3)):
        model = perceptron()
        monitor = watch(model, optimizer := still(model))
        train(model, optimizer, draws(job, 16), 20, accumulation, clip=clip)
        found.append(monitor.read().noise_scale.value)
    assert found[0] == found[1]
    assert found[2] == found[3]


def test_trained_gradients_are_the_same_with_and_without_us() -> None:
    job, weights = regression_job(), []
    for watched in (False, True):
        torch.manual_seed(0)
        model = Deep()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        monitor = watch(model, optimizer) if watched else None
        train(model, optimizer, draws(job, 16), 30)
        assert monitor is None or monitor.read().steps > 0
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-5)


def test_only_what_is_trained_counts() -> None:
    # As with adapters: a frozen body, and the optimizer holds the rest in two groups.
    job, model = regression_job(), Deep()
    for p in model.blocks.parameters():
        p.requires_grad_(False)
    optimizer = torch.optim.SGD(
        [{"params": model.first.parameters()}, {"params": model.last.parameters()}],
        lr=0.0,
    )
    monitor = watch(model, optimizer)
    train(model, optimizer, draws(job, 16), 6)
    found = monitor.read()
    assert set(found.by_layer) == {"first", "last"}
    assert found.coverage.parameters == 1.0


def test_state_goes_on_where_it_was() -> None:
    job, model = regression_job(), Deep()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0)
    monitor = rb.NoiseMonitor(model, optimizer, math.inf)
    train(model, optimizer, draws(job, 16), 20)
    state = json.loads(json.dumps(monitor.state_dict()))
    monitor.close()
    again = rb.NoiseMonitor(model, optimizer, math.inf)
    again.load_state_dict(state)
    first, second = monitor.read(), again.read()
    assert first.noise_scale == second.noise_scale
    assert first.metrics == second.metrics
    other = rb.NoiseMonitor(perceptron())
    with pytest.raises(rb.SettingError, match="another model"):
        other.load_state_dict(state)


def test_closing_leaves_nothing_behind() -> None:
    model = Deep()
    optimizer = still(model)
    with watch(model, optimizer) as monitor:
        train(model, optimizer, draws(regression_job(), 16), 3)
        before = monitor.read().steps
    train(model, optimizer, draws(regression_job(), 16), 3)
    assert monitor.read().steps == before
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    copy.deepcopy(model)


def test_memory_stays_that_of_the_step() -> None:
    # A transformer layer with a batch of 32: no gradient is kept a second time.
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 128), nn.GELU(), nn.Linear(128, 8)
    )
    x, y = torch.randn(32, 16, 32), torch.randn(32, 16, 8)
    peaks = []
    for watched in (False, True):
        optimizer = still(model)
        monitor = watch(model, optimizer) if watched else None
        train(model, optimizer, [(x, y)] * 2, 2)  # the test of the layout is done once
        optimizer.zero_grad()
        bytes_ = LiveBytes()
        bytes_.add([*model.parameters(), x, y])
        with bytes_:
            train(model, optimizer, [(x, y)], 1)
        peaks.append(bytes_.peak)
        if monitor is not None:
            monitor.close()
    assert peaks[1] < 1.15 * peaks[0]


def test_bad_settings_are_refused() -> None:
    model = perceptron()
    bad: list[dict[str, Any]] = [
        {"overhead": 0.0},
        {"overhead": math.nan},
        {"groups": 1},
        {"groups": "all"},
        {"population": 1},
        {"overhead": "2%"},
        {"optimizer": [model]},
        {"optimizer": []},
    ]
    for settings in bad:
        with pytest.raises(rb.SettingError):
            rb.NoiseMonitor(model, **settings)
    with pytest.raises(rb.SettingError, match="does not hold the model's parameters"):
        rb.NoiseMonitor(model, still(perceptron()))
    for nothing in (None, still(model)):
        with pytest.raises(rb.SettingError, match="not a model"):
            rb.NoiseMonitor(nothing)  # type: ignore[arg-type]
    with pytest.raises(rb.SettingError, match="not the state"):
        rb.NoiseMonitor(model).load_state_dict({})
    frozen = perceptron().requires_grad_(False)
    with pytest.raises(rb.SettingError, match="no trainable"):
        rb.NoiseMonitor(frozen)


def test_a_model_that_is_never_called_is_told() -> None:
    model = perceptron()
    twin = perceptron()
    monitor = watch(model)
    optimizer = still(model)

    def updates() -> None:
        for x, y in itertools.islice(draws(regression_job(), 8), 6):
            (twin(x) - y).square().mean().backward()
            optimizer.step()

    with pytest.warns(UserWarning, match="no forward pass of the model was seen"):
        updates()
    assert monitor.read().steps == 0


def test_any_optimizer_of_the_model_is_found() -> None:
    model = perceptron()
    monitor = watch(model)  # no optimizer given
    other = perceptron()
    train(model, still(model), draws(regression_job(), 16), 5)
    train(other, still(other), draws(regression_job(), 16), 5)
    assert monitor.read(window=10**6).steps == 5


def test_evaluation_between_steps_is_not_counted() -> None:
    job, model = regression_job(), perceptron()
    monitor = watch(model, optimizer := still(model))
    for _ in range(4):
        train(model, optimizer, draws(job, 16), 1)
        with torch.no_grad():
            model(job.data[0])
    assert monitor.read(window=10**6).steps == 4
    assert monitor.read().examples == 64


def test_copies_are_not_watched_and_can_be_saved(tmp_path: Any) -> None:
    model = perceptron()
    monitor = watch(model)
    twin = copy.deepcopy(model)
    torch.save(model, tmp_path / "model.pt")
    again = torch.load(tmp_path / "model.pt", weights_only=False)
    for other in (twin, again):
        train(other, still(other), draws(regression_job(), 16), 3)
    assert monitor.read().examples == 0


def test_an_exception_in_the_model_leaves_no_mode_behind() -> None:
    class Fragile(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.broken = nn.Linear(5, 1), False

        def forward(self, x: Tensor) -> Tensor:
            out = self.inner(x)
            if self.broken:
                raise KeyError("broken")
            return out

    model = Fragile()
    monitor = watch(model, optimizer := still(model))
    model.broken = True
    with pytest.raises(KeyError):
        train(model, optimizer, draws(regression_job(), 16), 1)
    assert torch._C._len_torch_function_stack() == 0
    model.broken = False
    train(model, optimizer, draws(regression_job(), 16), 3)
    assert monitor.read(window=10**6).steps >= 2


def test_optimizers_that_call_the_model_are_told() -> None:
    job, model = regression_job(), perceptron()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)
    monitor = watch(model, optimizer)
    x, y = job.data[0][:32], job.data[1][:32]

    def closure() -> Any:
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        return loss

    with pytest.warns(UserWarning, match="closure"):
        optimizer.step(closure)
    optimizer.step(closure)
    assert monitor.read().steps == 0


def test_random_numbers_of_the_training_stay_its_own() -> None:
    job, weights = regression_job(), []
    for watched in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 16), nn.Dropout(), nn.Linear(16, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        monitor = watch(model, optimizer) if watched else None
        torch.manual_seed(1)
        train(model, optimizer, draws(job, 16), 10)
        assert monitor is None or monitor.read().coverage.verified
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(weights[0], weights[1])
