"""Groups inside one batch: what is seen, what is refused, and on which models."""

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rightbatch as rb
from cases import regression_job
from reference import gradients, noise_by_pairs, true_noise
from watched_loops import (
    Deep,
    Normed,
    draws,
    perceptron,
    signal_and_noise,
    still,
    train,
    watch,
)


@pytest.mark.parametrize(("groups", "batch"), [(4, 12), (4, 10), (2, 7), (10, 10)])
def test_a_step_is_its_definition(groups: int, batch: int) -> None:
    job, model = regression_job(), nn.Linear(5, 1)
    # With a length, so that an example is no single vector.
    x, y = job.data[0][:batch, None], job.data[1][:batch, None]
    small, larger = divmod(batch, groups)
    cuts = [small + (j < larger) for j in range(groups)]
    parts = zip(x.split(cuts), y.split(cuts), strict=True)
    losses = [(model(one) - target).square().sum() / batch for one, target in parts]
    truth = noise_by_pairs(gradients(model, losses), cuts)
    optimizer = still(model)
    monitor = watch(model, optimizer, groups=groups)
    train(model, optimizer, [(x, y)], 1)
    found = signal_and_noise(monitor.read())
    assert found == pytest.approx(truth, rel=1e-4, abs=1e-4)


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
        assert abs(part.value - truth) < part.high - part.low
    assert found.noise_scale.relative < 0.1
    assert found.noise_scale.value == pytest.approx(noise / signal, rel=0.2)


def test_two_forward_passes_before_one_backward() -> None:
    # Two views of each example through the same weights: one step, parts added.
    torch.manual_seed(0)
    model, batch = nn.Linear(4, 3), 8
    x, y = torch.randn(batch, 4), torch.randn(batch, 4)
    losses = [(model(x[b]) * model(y[b])).sum() / batch for b in range(batch)]
    truth = noise_by_pairs(gradients(model, losses), [1] * batch)
    monitor = watch(model, optimizer := still(model), groups="examples", verify=False)
    for _ in range(2):  # the first step finds that the layer is used twice
        optimizer.zero_grad()
        (model(x) * model(y)).sum(1).mean().backward()
        optimizer.step()
    found = monitor.read()
    assert found.steps == 1
    assert signal_and_noise(found) == pytest.approx(truth, rel=1e-4)


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


def test_examples_that_touch_inside_the_model_are_found_out() -> None:
    job, model = regression_job(), Coupled()
    monitor = watch(model, optimizer := still(model))
    with pytest.warns(UserWarning, match="examples touch each other inside"):
        train(model, optimizer, draws(job, 16), 8)
    found = monitor.read()
    assert found.steps == 0
    assert found.coverage.verified is False
    assert found.coverage.parameters == 0.0


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
    each = [slice(b, b + 1) for b in range(8)]
    losses = [(model(x[b]) - y[b]).square().mean() / 8 for b in each]
    truth = noise_by_pairs(gradients(model, losses), [1] * 8)
    monitor = watch(model, optimizer := still(model), groups="examples")
    train(model, optimizer, [(x, y)] * 3, 3)
    found = monitor.read()
    assert found.coverage.verified
    assert found.coverage.parameters == 1.0
    assert signal_and_noise(found) == pytest.approx(truth, rel=1e-4)


def told(model: nn.Module, called: Any = None, steps: int = 12) -> rb.NoiseScale:
    """Everything a monitor sees of a fixed stream of batches."""
    called = model if called is None else called
    job = regression_job()
    with watch(called, optimizer := still(model)) as monitor:
        train(called, optimizer, draws(job, 16), steps)
        return monitor.read(window=8 * 16)


def test_checkpointing_changes_nothing() -> None:
    torch.manual_seed(0)
    model = Deep()
    plain = told(model)
    model.reentrant = False
    same = told(model)
    assert same.coverage.parameters == 1.0
    assert same.steps == plain.steps
    assert same.trace.value == pytest.approx(plain.trace.value, rel=1e-4)
    assert same.grad_norm_sq.value == pytest.approx(plain.grad_norm_sq.value, rel=1e-3)


@pytest.mark.filterwarnings("ignore:.*use_reentrant.*")
def test_checkpointing_of_the_older_kind_cannot_be_verified() -> None:
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="use_reentrant=False does"):
        found = told(Deep(reentrant=True))
    assert found.steps == 0
    assert "use_reentrant=False" in found.problem


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_models_run_as_written_while_measured(backend: str) -> None:
    torch.manual_seed(0)
    model = Deep()
    plain = told(model)
    same = told(model, torch.compile(model, backend=backend))
    assert same.coverage.parameters == 1.0
    assert same.trace.value == pytest.approx(plain.trace.value, rel=1e-4)


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


def test_a_batch_of_one_gives_nothing() -> None:
    job, model = regression_job(), perceptron()
    monitor = watch(model, optimizer := still(model))
    train(model, optimizer, draws(job, 1), 5)
    assert monitor.read().steps == 0
    assert "one example" in monitor.read().verdict
    train(model, optimizer, draws(job, 2), 6, accumulation=2)  # two of one each
    assert monitor.read(window=10**6).steps == 5


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
    with pytest.warns(UserWarning, match="only 0% of the parameters are seen"):
        train(model, optimizer, draws(regression_job(), 16), 4)
    found = monitor.read()
    assert "nothing measured yet (only 0%" in found.verdict
    assert found.skipped == 0
    half = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(5, 8)))
    half.append(nn.Linear(8, 1))
    monitor = watch(half, optimizer := still(half))
    with pytest.warns(UserWarning, match="of the parameters are seen"):
        train(half, optimizer, draws(regression_job(), 16), 6)
    assert "enters no operation that is known" in monitor.read().verdict


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
    monitor = watch(model, optimizer := still(model))
    for _ in range(4):
        x = torch.randn(batch, 4, 3)
        train(model, optimizer, [(x, torch.zeros(batch, 4, 1))], 1)
    losses = [model(x[i]).square().mean() / batch for i in range(batch)]
    truth = noise_by_pairs(gradients(model, losses), [1] * batch)
    found = signal_and_noise(monitor.read(window=1))
    assert found == pytest.approx(truth, rel=1e-3, abs=1e-6)


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


def test_a_vector_seen_as_a_matrix_is_a_view() -> None:
    """A scale of one axis, unsqueezed, has no transpose."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.scale = nn.Linear(5, 4), nn.Parameter(torch.rand(4))

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) * self.scale.unsqueeze(0)

    torch.manual_seed(0)
    model, x = Scaled(), torch.randn(8, 5)
    losses = [model(one[None]).square().mean() / 8 for one in x]
    truth = noise_by_pairs(gradients(model, losses), [1] * 8)
    monitor = watch(model, optimizer := still(model))
    train(model, optimizer, [(x, torch.zeros(8, 4))], 1)
    found = monitor.read()
    assert found.coverage.parameters == 1.0
    assert signal_and_noise(found) == pytest.approx(truth, rel=1e-4)


def test_inputs_with_the_length_first_have_their_own_batch_axis() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(5, 2), torch.randn(3, 8, 5)  # (length, batch, features)
    losses = [model(x[:, b]).square().mean() / 8 for b in range(8)]
    truth = noise_by_pairs(gradients(model, losses), [1] * 8)
    monitor = watch(model, optimizer := still(model), groups="examples", batch_axis=1)
    train(model, optimizer, [(x, torch.zeros(3, 8, 2))], 1)
    found = monitor.read()
    assert found.examples == 8
    assert found.coverage.verified
    assert signal_and_noise(found) == pytest.approx(truth, rel=1e-4)
