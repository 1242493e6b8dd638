"""A monitor in people's own loops: the pitfalls of others, and bad input."""

import copy
import itertools
import json
import math
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import rightbatch as rb
from cases import regression_job
from reference import noise_by_pairs, per_example_gradients, true_noise
from rightbatch.core.json_io import from_plain, to_plain
from rightbatch.memory.live_bytes import LiveBytes
from rightbatch.noise.budget import Budget
from rightbatch.noise.capture.group_norms import Key
from rightbatch.noise.statistics.history import BLOCKS, Ledger
from rightbatch.noise.statistics.moments import finite_population, unbiased
from rightbatch.noise.statistics.optimizer_metric import Lens, root_moments, sign_scale
from rightbatch.noise.statistics.samples import metric_pairs


def still(model: nn.Module) -> torch.optim.Optimizer:
    """Weights do not move, so that there is one truth."""
    return torch.optim.SGD(model.parameters(), lr=0.0)


def draws(job: rb.Job, batch: int, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        index = torch.randint(job.length, (batch,), generator=generator)
        yield job.data[0][index], job.data[1][index]


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Any,
    steps: int,
    accumulation: int = 1,
    reduction: str = "mean",
    clip: float | None = None,
) -> None:
    for x, y in itertools.islice(batches, steps):
        optimizer.zero_grad()
        parts = zip(x.chunk(accumulation), y.chunk(accumulation), strict=True)
        for one, target in parts:
            loss = (model(one) - target).square()
            value = loss.sum() if reduction == "sum" else loss.mean() / accumulation
            value.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()


def watch(model: nn.Module, optimizer: Any = None, **settings: Any) -> rb.NoiseMonitor:
    given: dict[str, Any] = {"overhead": math.inf, "metrics": False, **settings}
    return rb.NoiseMonitor(model, optimizer, **given)


def perceptron(*, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 1))


# One step against the definitions.


def one_step(
    groups: Any = 4, batch: int = 10, accumulation: int = 1, **more: Any
) -> tuple[rb.NoiseScale, float, float]:
    """What a monitor says of a single step, and the truth by pairs of groups."""
    job = regression_job()
    model = perceptron()
    x, y = job.data[0][:batch], job.data[1][:batch]
    cuts = [
        len(part) for part in x.chunk(groups if accumulation == 1 else accumulation)
    ]
    if accumulation == 1:
        small, larger = divmod(batch, groups)
        cuts = [small + (j < larger) for j in range(groups)]
    parts = []
    for one, target in zip(x.split(cuts), y.split(cuts), strict=True):
        loss = (model(one) - target).square().sum() / batch
        grads = torch.autograd.grad(loss, list(model.parameters()))
        parts.append(torch.cat([g.flatten() for g in grads]).double())
    optimizer = still(model)
    monitor = watch(model, optimizer, groups=groups, verify=False, **more)
    for _ in range(2 if accumulation > 1 else 1):  # accumulation is seen in the first
        optimizer.zero_grad()
        pairs = zip(x.chunk(accumulation), y.chunk(accumulation), strict=True)
        for one, target in pairs:
            ((model(one) - target).square().sum() / batch).backward()
        optimizer.step()
    return monitor.read(), *noise_by_pairs(parts, cuts)


@pytest.mark.parametrize(("groups", "batch"), [(4, 12), (4, 10), (2, 7), (10, 10)])
def test_a_step_is_its_definition(groups: int, batch: int) -> None:
    job, model = regression_job(), nn.Linear(5, 1)
    # With a length, so that an example is no single vector.
    x, y = job.data[0][:batch, None], job.data[1][:batch, None]
    small, larger = divmod(batch, groups)
    cuts = [small + (j < larger) for j in range(groups)]
    parts = []
    for one, target in zip(x.split(cuts), y.split(cuts), strict=True):
        loss = (model(one) - target).square().sum() / batch
        grads = torch.autograd.grad(loss, list(model.parameters()))
        parts.append(torch.cat([g.flatten() for g in grads]).double())
    signal, noise = noise_by_pairs(parts, cuts)
    optimizer = still(model)
    monitor = watch(model, optimizer, groups=groups)
    train(model, optimizer, [(x, y)], 1)
    found = monitor.read()
    assert found.grad_norm_sq.value == pytest.approx(signal, rel=1e-4, abs=1e-4)
    assert found.trace.value == pytest.approx(noise, rel=1e-4)


@pytest.mark.parametrize("accumulation", [2, 4])
def test_micro_batches_are_groups(accumulation: int) -> None:
    found, signal, noise = one_step(batch=12, accumulation=accumulation)
    assert found.source.startswith("micro-batches")
    assert found.coverage.parameters == 1.0
    assert found.grad_norm_sq.value == pytest.approx(signal, rel=1e-4)
    assert found.trace.value == pytest.approx(noise, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("groups", [8, "examples"])
def test_a_running_estimate_is_near_the_truth(groups: Any) -> None:
    # 4,000 steps of 16 at fixed weights; both parts within 4 standard errors, which
    # the interval (2 s.e.) gives; the ratio's interval within 10 %.
    job, model = regression_job(), perceptron()
    monitor = watch(model, optimizer := still(model), groups=groups)
    train(model, optimizer, draws(job, 16), 4000)
    signal, noise = true_noise(job, model)
    found = monitor.read(window=4000 * 16)
    for part, truth in ((found.grad_norm_sq, signal), (found.trace, noise)):
        assert abs(part.value - truth) < 2 * (part.high - part.low) / 2
    assert found.noise_scale.relative < 0.1
    assert found.noise_scale.value == pytest.approx(noise / signal, rel=0.2)


# Pitfalls 1 and 2: ratios, clipping, clocks.


def test_numerator_and_denominator_are_averaged_apart() -> None:
    # Signals of -1 and 3: the mean is 1, and no value is cut off or left out.
    ledger = Ledger()
    for k in range(100):
        ledger.add(k, 1.0, np.array([-1.0 if k % 2 else 3.0]), np.array([8.0]))
    blocks = ledger.since(0)
    assert sum(b.signal[0] for b in blocks) / 100 == 1.0
    found = rb.NoiseMonitor(nn.Linear(2, 1))
    found._ledger, found._names = ledger, type(found._names)(("w",), (-1,))
    assert found.read(window=1000).noise_scale.value == pytest.approx(8.0)


def test_no_signal_is_infinity_and_never_a_large_number() -> None:
    # Gradients of pure noise: the target does not depend on the input.
    model = nn.Linear(5, 1, bias=False)
    nn.init.zeros_(model.weight)
    generator = torch.Generator().manual_seed(0)
    monitor = watch(model, optimizer := still(model))
    for _ in range(50):
        optimizer.zero_grad()
        x, y = (torch.randn(16, n, generator=generator) for n in (5, 1))
        (model(x) - y).square().mean().backward()
        optimizer.step()
    found = monitor.read(window=10_000)
    assert found.noise_scale.high == math.inf
    assert "at least" in found.verdict
    assert found.noise_scale.low > 16  # 50 steps of 16 tell it from one batch


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
    weights = [b.weight for b in monitor._ledger.blocks]
    assert set(weights) == {8, 32}


def test_the_ledger_stays_small_and_loses_nothing() -> None:
    ledger, whole = Ledger(), 0.0
    for k in range(5000):
        ledger.add(k, 2.0, np.array([float(k)]), np.array([1.0]))
        whole += 2.0 * k
        assert len(ledger.blocks) <= BLOCKS
    assert ledger.count == 5000
    assert sum(b.signal[0] for b in ledger.blocks) == whole
    again = Ledger.from_state(json.loads(json.dumps(ledger.state())))
    assert again.blocks[3].signal[0] == ledger.blocks[3].signal[0]


# Pitfall 3, and facts 5 and 6: what others do must be seen failing.


@pytest.mark.slow
def test_estimators_that_mix_steps_are_wrong_while_training() -> None:
    # Momentum at a high rate on a quadratic: the weights swing, so the mean of ten
    # steps' gradients is far smaller than any of them. Truth at every step; medians.
    job = regression_job(examples=512)
    model = nn.Linear(5, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.06, momentum=0.9)
    monitor = watch(model, optimizer)
    mixed, batch, recent = [], 16, []
    ours, truths = [], []
    for step, (x, y) in enumerate(itertools.islice(draws(job, batch), 400)):
        optimizer.zero_grad()
        truth = true_noise(job, model)
        (model(x) - y).square().mean().backward()
        assert model.weight.grad is not None
        recent.append(model.weight.grad.flatten().clone())
        optimizer.step()
        if step < 100 or len(recent) < 10:
            continue
        truths.append(truth)
        small = float(torch.stack([g @ g for g in recent[-10:]]).mean())
        mean = torch.stack(recent[-10:]).mean(0)
        big = float(mean @ mean)
        mixed.append(((10 * big - small) / 9, (small - big) * batch / 0.9))
        block = monitor._ledger.blocks[-1]
        weight = block.weight
        ours.append((block.signal.sum() / weight, block.noise.sum() / weight))

    def scale(pairs: Any) -> float:
        signal, noise = np.mean(np.array(pairs), 0)
        return noise / signal if signal > 0 else math.inf

    true = np.mean([n for _, n in truths]) / np.mean([s for s, _ in truths])
    assert scale(ours) == pytest.approx(true, rel=0.3)
    assert scale(mixed) > 2 * true


def test_the_raw_norm_as_signal_never_exceeds_the_batch() -> None:
    # With the noise scale far above the batch the biased form says about B,
    # whatever the truth; a rule that sets B from it grows for ever (pitfall 14).
    random = np.random.default_rng(0)
    dimension, truth = 200, 1000.0
    mean = np.full(dimension, 1 / math.sqrt(dimension))

    def step(batch: int) -> tuple[float, float, float]:
        size = batch // 8
        scale = math.sqrt(truth / dimension / size)
        parts = (mean + random.normal(size=(8, dimension)) * scale) / 8
        whole = parts.sum(0)
        both = unbiased(
            np.array((parts**2).sum()), np.array(whole @ whole), 1 / 8, 8 * size
        )
        return float(both[0]), float(both[1]), float(whole @ whole)

    for batch in (16, 64):
        rows = np.array([step(batch) for _ in range(2000)]).mean(0)
        assert rows[1] / rows[2] < 1.1 * batch
        assert rows[1] / rows[0] == pytest.approx(truth, rel=0.35)
    biased = right = 16
    for _ in range(6):  # B <- 4 noise / signal, as norm tests do with eta = 1/2
        rows = np.array([step(8 * max(1, biased // 8)) for _ in range(200)]).mean(0)
        biased = int(4 * rows[1] / rows[2])
        rows = np.array([step(8 * max(1, right // 8)) for _ in range(4000)]).mean(0)
        right = int(min(max(4 * rows[1] / rows[0], 8), 1e5))
    assert right == pytest.approx(4 * truth, rel=0.3)
    assert biased != pytest.approx(right, rel=0.05)


# Pitfalls 4 to 6: reductions, units, accumulation.


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


def test_the_unit_of_an_example_is_told() -> None:
    monitor = watch(perceptron(), example="sequence of 128 tokens")
    assert monitor.read().example == "sequence of 128 tokens"


def test_accumulation_of_any_kind_and_scale() -> None:
    # Scaled by 1/k or not, the last step with fewer micro-batches, then none.
    job, model = regression_job(), perceptron()
    monitor = watch(model, optimizer := still(model))
    train(model, optimizer, draws(job, 32), 6, accumulation=4)
    assert monitor.read().source.startswith("micro-batches")
    train(model, optimizer, draws(job, 16), 1, accumulation=2)
    train(model, optimizer, draws(job, 16), 4)
    found = monitor.read(window=10**6)
    # The first accumulated step, and the first that is not, only teach.
    assert found.steps == 5 + 1 + 3
    assert found.source.startswith("groups inside")
    assert found.noise_scale.low >= 0


def test_two_forward_passes_before_one_backward() -> None:
    # Two views of each example through the same weights: one step, parts added.
    torch.manual_seed(0)
    model, batch = nn.Linear(4, 3), 8
    x, y = torch.randn(batch, 4), torch.randn(batch, 4)
    rows = []
    for b in range(batch):
        loss = (model(x[b : b + 1]) * model(y[b : b + 1])).sum()
        grads = torch.autograd.grad(loss, list(model.parameters()))
        rows.append(torch.cat([g.flatten() for g in grads]).double() / batch)
    signal, noise = noise_by_pairs(rows, [1] * batch)
    monitor = watch(model, optimizer := still(model), groups="examples", verify=False)
    for _ in range(2):  # the first step finds that the layer is used twice
        optimizer.zero_grad()
        (model(x) * model(y)).sum(1).mean().backward()
        optimizer.step()
    found = monitor.read()
    assert found.steps == 1
    assert found.grad_norm_sq.value == pytest.approx(signal, rel=1e-4)
    assert found.trace.value == pytest.approx(noise, rel=1e-4)


# Pitfalls 8 and 9: scaled, broken, clipped gradients.


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
    assert monitor._measured == 10
    assert found.trace.value > 0
    assert monitor.log()["noise/skipped"] == 2.0


def test_a_step_that_a_scaler_leaves_out_is_no_micro_batch() -> None:
    job, model = regression_job(), perceptron()
    monitor = watch(model, optimizer := still(model))
    for k, (x, y) in enumerate(itertools.islice(draws(job, 16), 12)):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        if k % 4 != 3:
            optimizer.step()
    assert monitor._measured == 9
    assert monitor.read().source.startswith("groups inside")


def test_clipping_comes_after_measuring() -> None:
    job, found = regression_job(), []
    for accumulation, clip in itertools.product((1, 4), (None, 1e-3)):
        model = perceptron()
        monitor = watch(model, optimizer := still(model))
        train(model, optimizer, draws(job, 16), 20, accumulation, clip=clip)
        found.append(monitor.read().noise_scale.value)
    assert found[0] == found[1]
    assert found[2] == found[3]


def test_no_gradient_at_all_is_told() -> None:
    model = nn.Linear(5, 1)
    monitor = watch(model, optimizer := still(model))
    for _ in range(4):
        optimizer.zero_grad()
        (model(torch.randn(8, 5)) * 0).sum().backward()
        optimizer.step()
    found = monitor.read()
    assert found.zero == 4
    assert found.verdict == "nothing measured yet (4 steps all gradients zero)"
    assert found.noise_scale.value == math.inf


# Pitfall 10: examples that depend on each other.


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(5, 8), nn.BatchNorm1d(8)
        self.last = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.norm(self.first(x))))


def test_batch_norm_is_refused_inside_a_batch_only() -> None:
    job, model = regression_job(), Normed()
    monitor = watch(model, optimizer := still(model))
    with pytest.warns(UserWarning, match="accumulate two or more"):
        train(model, optimizer, draws(job, 16), 3)
    assert monitor.read().steps == 0
    train(model, optimizer, draws(job, 16), 5, accumulation=2)
    assert monitor.read(window=10**6).steps == 4  # groups of one size are legal
    frozen = Normed().eval()  # no batch statistics: nothing is coupled
    monitor = watch(frozen, optimizer := still(frozen))
    train(frozen, optimizer, draws(job, 16), 3)
    assert monitor.read(window=10**6).steps == 3


class Coupled(nn.Module):
    """Centres its features over the batch: no BatchNorm by name."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.first(x))
        return self.last(y - y.mean(0))


@pytest.mark.filterwarnings("ignore:.*of the parameters can be seen")
def test_examples_that_touch_inside_the_model_are_found_out() -> None:
    job, model = regression_job(), Coupled()
    monitor = watch(model, optimizer := still(model))
    train(model, optimizer, draws(job, 16), 8)
    found = monitor.read()
    assert found.coverage.verified is False
    assert "elsewhere" in found.coverage.missing["first.weight"]
    assert found.coverage.parameters < 0.3


def test_an_ambiguous_layout_is_found_out() -> None:
    # As many positions as examples: only sending a gradient back tells them apart.
    class Places(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.places, self.last = nn.Embedding(8, 4), nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.tanh(x + self.places(torch.arange(x.shape[1]))))

    torch.manual_seed(0)
    model = Places()
    x, y = torch.randn(8, 8, 4), torch.randn(8, 8, 1)
    rows = []
    for b in range(8):
        loss = (model(x[b : b + 1]) - y[b : b + 1]).square().mean() / 8
        grads = torch.autograd.grad(loss, list(model.parameters()))
        rows.append(torch.cat([g.flatten() for g in grads]).double())
    signal, noise = noise_by_pairs(rows, [1] * 8)
    monitor = watch(model, optimizer := still(model), groups="examples")
    train(model, optimizer, [(x, y)] * 3, 3)
    found = monitor.read()
    assert found.coverage.verified
    assert found.coverage.parameters == 1.0
    assert found.grad_norm_sq.value == pytest.approx(signal, rel=1e-4)
    assert found.trace.value == pytest.approx(noise, rel=1e-4)


def test_contrastive_losses_are_refused_where_the_loss_is_known() -> None:
    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        z = F.normalize(model(batch[0]), dim=1)
        return F.cross_entropy(z @ z.T, torch.arange(len(z)))

    job = regression_job(model=lambda: nn.Linear(5, 3), loss=loss)
    with pytest.raises(rb.JobError, match="group_size=B"):
        rb.noise_scale(job, budget_s=1)
    found = rb.noise_scale(job, budget_s=1, group_size=16)
    assert found.batch_size == 16


@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize("vectors", [True, False])
def test_neighbours_that_are_alike_are_noticed(alike: bool, vectors: bool) -> None:
    # Sorted by target within each batch, as length-sorted batches are.
    # With Adam, whose metrics are measured in steps of another kind.
    job, model = regression_job(), nn.Linear(5, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0)
    monitor = watch(model, optimizer, metrics=True)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in draws(job, 32):
            order = y[:, 0].argsort() if alike else torch.arange(32)
            place = order if vectors else (order, None)
            yield x[place], y[place]

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        train(model, optimizer, batches(), 200)
    told = [str(w.message) for w in seen if "neighbouring examples" in str(w.message)]
    assert len(told) == int(alike)
    assert monitor.read().steps > 0


# Pitfall 11: models as they are in the wild.


class Deep(nn.Module):
    """Blocks that may be checkpointed, and positions."""

    def __init__(self, reentrant: bool | None = None) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.Tanh()) for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            if self.reentrant is None:
                x = x + block(x)
            else:
                x = x + checkpoint(block, x, use_reentrant=self.reentrant)
        return self.last(x)


def told(model: nn.Module, called: Any = None, steps: int = 12) -> rb.NoiseScale:
    """Everything a monitor sees of a fixed stream of batches."""
    called = model if called is None else called
    job = regression_job()
    with watch(called, optimizer := still(model)) as monitor:
        train(called, optimizer, draws(job, 16), steps)
        return monitor.read(window=8 * 16)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.filterwarnings("ignore:.*use_reentrant.*")
def test_checkpointing_changes_nothing(reentrant: bool) -> None:
    torch.manual_seed(0)
    model = Deep()
    plain = told(model)
    model.reentrant = reentrant
    same = told(model)
    assert same.coverage.parameters == 1.0
    assert same.steps == plain.steps
    assert same.trace.value == pytest.approx(plain.trace.value, rel=1e-4)
    assert same.grad_norm_sq.value == pytest.approx(plain.grad_norm_sq.value, rel=1e-3)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_models_run_as_written_while_measured(backend: str) -> None:
    torch.manual_seed(0)
    model = Deep()
    plain = told(model)
    same = told(model, torch.compile(model, backend=backend))
    assert same.coverage.parameters == 1.0
    assert same.trace.value == pytest.approx(plain.trace.value, rel=1e-4)


def test_trained_gradients_are_the_same_with_and_without_us() -> None:
    job, weights = regression_job(), []
    for watched in (False, True):
        torch.manual_seed(0)
        model = Deep()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        monitor = watch(model, optimizer, metrics=True) if watched else None
        train(model, optimizer, draws(job, 16), 30)
        assert monitor is None or monitor.read().steps > 0
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-5)


def test_only_what_is_trained_counts() -> None:
    # As with adapters: a frozen body, and a group of the optimizer for the rest.
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
    assert set(found.by_group) == {"0", "1"}
    assert found.coverage.parameters == 1.0
    total = sum(part.trace.value for part in found.by_group.values())
    assert total == pytest.approx(found.trace.value)


def test_gradient_penalties_give_nothing_rather_than_something_wrong() -> None:
    model = nn.Linear(5, 1)
    monitor = watch(model, optimizer := still(model), verify=False)
    for _ in range(4):
        optimizer.zero_grad()
        x = torch.randn(8, 5, requires_grad=True)
        out = torch.tanh(model(x)).sum()
        (slope,) = torch.autograd.grad(out, [x], create_graph=True)
        slope.square().sum().backward()
        optimizer.step()
    assert monitor.read().steps == 0


# Pitfall 12: totals.


def test_layers_add_up_and_ratios_do_not() -> None:
    job, model = regression_job(), Deep()
    monitor = watch(model, optimizer := still(model))
    train(model, optimizer, draws(job, 16), 60)
    found = monitor.read(window=10**6)
    layers = found.by_layer.values()
    signal = sum(one.grad_norm_sq.value for one in layers)
    noise = sum(one.trace.value for one in layers)
    assert noise / signal == pytest.approx(found.noise_scale.value, rel=1e-6)
    assert sum(one.share for one in layers) == pytest.approx(1.0)


# Pitfall 13: metrics.


def groups_of_gradients(k: int, n: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(k, n, generator=generator).double() * 0.3 + 0.1


def seen_by_lens(rows: Tensor, parameter: nn.Parameter, moments: Any) -> Lens:
    lens = Lens([parameter], moments, (2,) * len(rows))
    before = None
    for j, part in enumerate(rows):
        lens.see(Key(0), before, part.float(), j)
        before = part.float() if before is None else before + part.float()
    return lens


def test_adams_metrics_are_their_definitions() -> None:
    parameter = nn.Parameter(torch.zeros(40))
    moment = torch.rand(40) ** 4
    rows = groups_of_gradients(5, 40)
    lens = seen_by_lens(rows, parameter, {id(parameter): (moment, 0.5, 1e-3)})
    root = (moment.double() / 0.5).sqrt() + 1e-3
    floor = 0.1 * float(root.float().median())
    weights = {
        "adam": 1 / root,
        "adam_robust": 1 / root.clamp(min=floor),
        "adam_curvature": 1 / root.sqrt(),
    }
    pairs = metric_pairs(lens, lens.read(), 1.0)
    for name, weight in weights.items():
        truth = noise_by_pairs(list(rows * weight), [2] * 5)
        got = tuple(float(v[0]) for v in pairs[name])
        np.testing.assert_allclose(got, truth, rtol=1e-4)


def test_silent_coordinates_swamp_the_plain_form_only() -> None:
    # One coordinate in a hundred has almost no second moment, and only noise.
    parameter = nn.Parameter(torch.zeros(100))
    moment = torch.full((100,), 0.01)
    moment[0] = 1e-14
    rows = torch.full((8, 100), 0.1).double() / 8
    generator = torch.Generator().manual_seed(0)
    rows += 0.005 * torch.randn(8, 100, generator=generator)
    lens = seen_by_lens(rows, parameter, {id(parameter): (moment, 1.0, 1e-8)})
    pairs = metric_pairs(lens, lens.read(), 1.0)
    whole = {n: float(noise[0]) for n, (_, noise) in pairs.items()}
    assert whole["adam"] > 1e4 * whole["adam_robust"]


@pytest.mark.slow
@pytest.mark.parametrize("ratio", [0.05, 0.1, 0.5])
def test_the_sign_based_scale_is_unbiased(ratio: float) -> None:
    # |G_i| / sigma_i = ratio everywhere: the truth is 1 / ratio^2. 800 batches of 64 in
    # 2,000 coordinates; within 7 % (4 standard errors at 0.05), where the published
    # form stays near B.
    generator = torch.Generator().manual_seed(0)
    n, batch, k = 2000, 64, 8
    sigma = torch.rand(n, generator=generator).double() + 0.5
    mean = sigma * ratio * torch.where(torch.arange(n) % 2 == 0, 1.0, -1.0)
    parameter = nn.Parameter(torch.zeros(n))
    gain = deviation = raw = 0.0
    for _ in range(800):
        noise = torch.randn(k, n, generator=generator).double()
        rows = (mean + sigma * noise * math.sqrt(k / batch)) / k
        lens = Lens([parameter], {}, (batch // k,) * k)
        before = None
        for j, part in enumerate(rows):
            lens.see(Key(0), before, part, j)
            before = part if before is None else before + part
        gain += float(lens.gain[0])
        deviation += float(lens.deviation[0])
        raw += float(rows.sum(0).abs().sum())
    found = sign_scale(gain, deviation, lens.gain_batch)
    assert found == pytest.approx(1 / ratio**2, rel=0.07)
    published = (800 * float(sigma.sum()) / raw) ** 2
    assert published < 1.7 * batch
    assert sign_scale(-1.0, 1.0, 8) == math.inf


def test_metrics_are_measured_for_adam_and_name_what_dominates() -> None:
    job, model = regression_job(), Deep()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    monitor = rb.NoiseMonitor(model, optimizer, math.inf)
    train(model, optimizer, draws(job, 16), 60)
    found = monitor.read()
    assert set(found.metrics) == {"adam", "adam_robust", "adam_curvature", "sign"}
    for metric in found.metrics.values():
        assert metric.use
        assert all(
            name in dict(model.named_parameters()) for name in metric.dominated_by
        )
    assert "noise/scale" in monitor.log()
    assert root_moments(None) == {}


# Finite data.


def test_without_replacement_the_population_is_the_data_set() -> None:
    # All 10 examples, all batches of 6 in 3 groups, exactly: the mean over every
    # order equals the population's own |G|^2 and tr Sigma.
    job = regression_job(examples=10)
    model = nn.Linear(5, 1, bias=False)
    rows = per_example_gradients(job, model).numpy()
    truth = true_noise(job, model)
    found = []
    for seed in range(20_000):
        pick = np.random.default_rng(seed).permutation(10)[:6]
        parts = rows[pick].reshape(3, 2, -1).sum(1) / 6
        whole = parts.sum(0)
        both = unbiased(np.array((parts**2).sum()), np.array(whole @ whole), 1 / 3, 6)
        found.append([float(v) for v in finite_population(*both, 10)])
    error = np.std(found, axis=0) / math.sqrt(len(found))
    assert (abs(np.mean(found, axis=0) - truth) < 4 * error).all()


def test_noise_of_a_batch_falls_to_zero_at_the_full_data() -> None:
    job, model = regression_job(examples=64), perceptron()
    monitor = watch(model, optimizer := still(model), population=64)
    train(model, optimizer, draws(job, 16), 5)
    found = monitor.read()
    assert found.gradient_noise(64).value == 0.0
    assert found.gradient_noise(1).value == found.trace.value
    with pytest.raises(ValueError, match="no batch of 65"):
        found.gradient_noise(65)


# The budget, the state, the memory.


@pytest.mark.parametrize(
    ("extra", "expected"), [(0.1, 0.14), (0.01, 1.0), (1.0, 0.014)]
)
def test_the_budget_is_kept(extra: float, expected: float) -> None:
    # A step takes 1 s, a measured one more: 1.4 % buys one in extra / 0.014 steps.
    now = 0.0
    budget = Budget(0.02, lambda: now)
    for _ in range(3000):
        kind = "norms" if budget.affords("norms") else ""
        now += 1.0 + (extra if kind else 0.0)
        budget.step(kind)
    assert budget.cost is not None
    assert budget.cost <= 0.02 + 4 * extra / 3000
    assert budget.measured / 3000 == pytest.approx(expected, rel=0.2)


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


def test_the_proxy_carries_the_scale_over() -> None:
    # Norm layers are seen in all steps, everything in few: the same answer as all.
    job = regression_job()
    torch.manual_seed(0)
    model = Deep()
    now = 0.0
    optimizer = still(model)
    monitor = rb.NoiseMonitor(
        model, optimizer, 0.02, proxy=True, metrics=False, clock=lambda: now
    )
    for x, y in itertools.islice(draws(job, 16), 3000):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        now += {"": 1.0, "norms": 1.3, "proxy": 1.005}[monitor._kind]
        optimizer.step()
    found = monitor.read(window=10**6)
    assert monitor._norm_ledger.count > 5 * monitor._ledger.count
    assert "normalisation layers" in found.noise_scale.method
    signal, noise = true_noise_of(job, model)
    assert found.noise_scale.low <= noise / signal <= found.noise_scale.high


def true_noise_of(job: rb.Job, model: nn.Module) -> tuple[float, float]:
    rows = []
    for x, y in zip(*job.data, strict=True):
        loss = (model(x[None]) - y[None]).square().mean()
        grads = torch.autograd.grad(loss, list(model.parameters()))
        rows.append(torch.cat([g.flatten() for g in grads]).double())
    every = torch.stack(rows)
    mean = every.mean(0)
    return float(mean @ mean), float((every - mean).square().sum(1).mean())


def test_a_reading_is_a_record_and_a_sentence() -> None:
    job, model = regression_job(), Deep()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0)
    monitor = rb.NoiseMonitor(model, optimizer, math.inf)
    empty = monitor.read()
    assert empty.verdict == "nothing measured yet"
    assert not empty.decided
    train(model, optimizer, draws(job, 16), 40)
    found = monitor.read(window=10**6)
    assert from_plain(rb.NoiseScale, json.loads(json.dumps(to_plain(found)))) == found
    assert str(found) == found.verdict
    assert all(math.isfinite(v) for v in found.log().values())
    # The half width falls with the root of the steps.
    wide = found.steps_needed(0.05) + found.steps
    assert wide == pytest.approx(4 * (found.steps_needed(0.1) + found.steps), rel=0.05)


# Bad input.


def test_bad_settings_are_refused() -> None:
    model = perceptron()
    bad: list[dict[str, Any]] = [
        {"overhead": 0.0},
        {"overhead": math.nan},
        {"groups": 1},
        {"groups": "all"},
        {"population": 1},
        {"proxy": True},
        {"overhead": "2%"},
        {"optimizer": [still(model)]},
    ]
    for settings in bad:
        with pytest.raises(rb.SettingError):
            rb.NoiseMonitor(model, **settings)
    with pytest.raises(rb.SettingError, match="does not hold the model's parameters"):
        rb.NoiseMonitor(model, still(perceptron()))
    for nothing in (None, still(model)):
        with pytest.raises(rb.SettingError, match="no model"):
            rb.NoiseMonitor(nothing)  # type: ignore[arg-type]
    with pytest.raises(rb.SettingError, match="no state"):
        rb.NoiseMonitor(model).load_state_dict({})
    with pytest.raises(rb.SettingError, match="no job"):
        rb.noise_scale("digits")  # type: ignore[arg-type]
    frozen = perceptron().requires_grad_(False)
    with pytest.raises(rb.SettingError, match="no trainable"):
        rb.NoiseMonitor(frozen)


def test_a_batch_of_one_gives_nothing() -> None:
    job, model = regression_job(), perceptron()
    monitor = watch(model, optimizer := still(model))
    train(model, optimizer, draws(job, 1), 5)
    assert monitor.read().steps == 0
    assert "one example" in monitor.read().verdict
    train(model, optimizer, draws(job, 2), 6, accumulation=2)  # two of one each
    assert monitor.read(window=10**6).steps == 5


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
    assert monitor._examples == 64


# In one call.


def test_exact_is_the_definition_and_sampling_finds_it() -> None:
    job = regression_job(model=lambda: nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 1)))
    exact = rb.noise_scale(job, exact=True)
    model = job.make_model()
    signal, noise = true_noise_of(job, model)
    assert exact.grad_norm_sq.value == pytest.approx(signal, rel=1e-5)
    assert exact.trace.value == pytest.approx(noise, rel=1e-5)
    assert exact.noise_scale.low == exact.noise_scale.high
    assert "(inside)" in exact.source
    found = rb.noise_scale(job, precision=0.1, budget_s=30)
    assert found.noise_scale.relative <= 0.1
    low, high = found.noise_scale.low, found.noise_scale.high
    assert 0.9 * low <= noise / signal <= 1.1 * high


class Sorting(nn.Module):
    """A parameter in an operation of our own: torch.func has to do it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.bend = nn.Linear(5, 1), nn.Parameter(torch.tensor([0.3]))

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) * torch.exp(self.bend) + 0.1 * torch.sin(self.bend)


class Stubborn(Sorting):
    """Nor can torch.func: it looks at a value."""

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return out * (1.0 if out.sum().item() > 0 else 1.5)


@pytest.mark.parametrize(("kind", "way"), [(Sorting, "torch.func"), (Stubborn, "loop")])
def test_any_model_has_an_exact_way(kind: type[nn.Module], way: str) -> None:
    job = regression_job(examples=40, model=kind)
    if kind is Stubborn:
        job = regression_job(examples=40, model=kind, batch_size=1)
    found = rb.noise_scale(job, exact=True)
    signal, noise = true_noise_of(job, job.make_model())
    assert f"({way})" in found.source
    assert found.grad_norm_sq.value == pytest.approx(signal, rel=1e-4)
    assert found.trace.value == pytest.approx(noise, rel=1e-4)


def test_noise_at_other_weights() -> None:
    job = regression_job()
    model = job.make_model()
    with torch.no_grad():
        next(model.parameters()).fill_(1.0)
    found = rb.noise_scale(job, at=model, exact=True)
    signal, _ = true_noise_of(job, model)
    assert found.grad_norm_sq.value == pytest.approx(signal, rel=1e-5)
    with pytest.raises(rb.SettingError, match="not the job's model"):
        rb.noise_scale(job, at=nn.Linear(3, 1))
    bad: list[dict[str, Any]] = [{"budget_s": 0.0}, {"precision": 0.0}]
    bad.append({"group_size": 0})
    for settings in bad:
        with pytest.raises(rb.SettingError):
            rb.noise_scale(job, **settings)


# What must never happen to somebody's training.


def test_batch_norm_statistics_are_those_of_the_whole_batch() -> None:
    # In a step that was to be measured, too: nothing may be run group by group.
    job, states = regression_job(), []
    for watched in (False, True):
        torch.manual_seed(0)
        model = Normed()
        optimizer = still(model)
        monitor = watch(model, optimizer) if watched else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            train(model, optimizer, draws(job, 16), 2)
        states.append(copy.deepcopy(model.state_dict()))
        assert monitor is None or monitor.read().steps == 0
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, msg=name)


def test_copies_are_not_watched_and_can_be_saved(tmp_path: Any) -> None:
    model = perceptron()
    monitor = watch(model)
    twin = copy.deepcopy(model)
    torch.save(model, tmp_path / "model.pt")
    again = torch.load(tmp_path / "model.pt", weights_only=False)
    for other in (twin, again):
        train(other, still(other), draws(regression_job(), 16), 3)
    assert monitor._examples == 0


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


def test_experts_are_left_out_even_where_their_rows_fit_by_chance() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.last = nn.Linear(5, 4), nn.Linear(5, 4)

        def forward(self, x: Tensor) -> Tensor:
            chosen = (x[:, 0] > 0).nonzero()[:, 0]  # 16 of 16 now and then
            return self.last(x).index_add(0, chosen, self.one(x[chosen]))

    model = Experts()
    monitor = watch(model, optimizer := still(model))
    for k in range(8):
        x = torch.randn(16, 5)
        x[:, 0] = x[:, 0].abs() if k % 2 else x[:, 0]
        train(model, optimizer, [(x, torch.randn(16, 4))], 1)
    found = monitor.read(window=10**6)
    assert "without a place" in found.coverage.missing["one.weight"]
    assert set(found.by_layer) == {"one", "last"}
    assert found.by_layer["one"].trace.value == 0.0


def test_what_cannot_be_seen_is_told() -> None:
    class Merged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = (nn.Parameter(torch.randn(*s)) for s in ((1, 2), (2, 5)))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, torch.ones(1, 5) + self.a @ self.b)

    model = Merged()
    monitor = watch(model, optimizer := still(model))
    train(model, optimizer, draws(regression_job(), 16), 4)
    found = monitor.read()
    assert "no parameter enters" in found.verdict
    assert found.zero == 0
    half = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(5, 8)))
    half.append(nn.Linear(8, 1))
    monitor = watch(half, optimizer := still(half))
    with pytest.warns(UserWarning, match="of the parameters can be seen"):
        train(half, optimizer, draws(regression_job(), 16), 6)
    assert "of the model" in monitor.read().verdict


@pytest.mark.parametrize("batch", [2, 3, 5, 8])
def test_a_batch_no_larger_than_its_groups(batch: int) -> None:
    """Every example is a group then, also for a parameter of two axes (positions)."""

    class Positions(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.at = torch.nn.Parameter(torch.zeros(4, 3))
            self.out = torch.nn.Linear(3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(x + self.at)

    torch.manual_seed(0)
    model = Positions()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    monitor = rb.NoiseMonitor(model, optimizer, math.inf)
    for _ in range(4):
        x = torch.randn(batch, 4, 3)
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    parts = [
        torch.cat(
            [
                g.flatten().double()
                for g in torch.autograd.grad(
                    model(x[i : i + 1]).square().mean() / batch,
                    list(model.parameters()),
                )
            ]
        )
        for i in range(batch)
    ]
    signal, noise = noise_by_pairs(parts, [1] * batch)
    found = monitor.read(window=1)
    assert found.grad_norm_sq.value == pytest.approx(signal, rel=1e-3, abs=1e-6)
    assert found.trace.value == pytest.approx(noise, rel=1e-3)
