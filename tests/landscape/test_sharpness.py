"""Eigenvalues, trace and rises against the dense Hessian; what is left untouched."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel

import rightbatch as rb
from cases import regression_job
from reference import dense_hessian, mean_rise
from rightbatch.landscape import (
    Sharpness,
    batch_sharpness,
    compare_sharpness,
    sharpness,
)
from rightbatch.landscape.hessian import hessian_of
from rightbatch.landscape.spectrum import Top, trace_of


def small_job(**more: Any) -> rb.Job:
    """A tanh network of 147 weights in float64 on 96 examples of 3 classes."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(96, 8, generator=generator).double()
    y = x[:, :3].argmax(1)

    def make() -> nn.Module:
        layers = [nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 3)]
        return nn.Sequential(*layers).double()

    given: dict[str, Any] = {
        "model": make,
        "loss": lambda model, b: F.cross_entropy(model(b[0]), b[1]),
        "data": (x, y),
        "optimizer": lambda params: torch.optim.SGD(params, lr=0.1),
        "batch_size": 8,
    }
    return rb.Job(**(given | more))


def trained(job: rb.Job, steps: int = 40) -> nn.Module:
    model = job.make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    batch = job.batch(range(job.length), torch.device("cpu"))
    for _ in range(steps):
        optimizer.zero_grad()
        value, count = job.mean_loss(model, batch)
        (value / (1 if count is None else count)).backward()
        optimizer.step()
    return model


def everything(job: rb.Job) -> Any:
    return job.batch(range(job.length), torch.device("cpu"))


@pytest.mark.parametrize("micro_batch", [None, 25])
def test_eigenvalues_and_trace_are_the_dense_hessians(micro_batch: int | None) -> None:
    job = small_job()
    model = trained(job)
    dense = dense_hessian(job, model, everything(job))
    values = torch.linalg.eigvalsh(dense).flip(0)[:3]
    point = sharpness(
        job, model, top=3, precision=0.01, most_probes=60, micro_batch=micro_batch
    )
    for value, estimate in zip(values.tolist(), point.eigenvalues, strict=True):
        assert estimate.value == pytest.approx(value, rel=0.01)  # residual 5 %
        assert estimate.low <= value * (1 + 1e-9)
        assert value <= estimate.high * (1 + 1e-9)
    trace = float(dense.trace())
    assert abs(point.trace.value - trace) < 4 * point.trace_error
    assert point.trace_error < 0.05 * trace
    assert point.method == "double backward"


def test_the_rises_are_those_of_their_definitions() -> None:
    job = small_job()
    model = trained(job)
    point = sharpness(job, model)
    loss, sam, adaptive = mean_rise(job, model, everything(job), draws=1500)
    assert point.loss == pytest.approx(loss, rel=1e-9)
    assert point.sam.value == pytest.approx(sam, rel=1e-6)
    assert point.adaptive.low < adaptive < point.adaptive.high  # 1,500 draws: 3 %
    assert point.adaptive.relative < 0.8


def test_adaptive_rise_alone_is_the_same_in_other_units_of_the_weights() -> None:
    def make() -> nn.Module:
        layers = [nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3, bias=False)]
        return nn.Sequential(*layers).double()

    job = small_job(model=make)
    plain = trained(job)
    scaled = make()
    state: dict[str, Tensor] = plain.state_dict()
    factors = {"0.weight": 3.0, "0.bias": 3.0, "2.weight": 1 / 3}
    scaled.load_state_dict({name: state[name] * by for name, by in factors.items()})
    ratios = compare_sharpness(sharpness(job, scaled), sharpness(job, plain))
    assert ratios["adaptive"].value == pytest.approx(1.0, abs=1e-6)
    assert ratios["top"].value > 1.5


def test_pairs_of_sum_and_count_are_weighted_by_the_count() -> None:
    def summed(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        wanted = batch[1] != 1
        each = F.cross_entropy(model(batch[0]), batch[1], reduction="none")
        return (each * wanted).sum(), wanted.sum()

    job = small_job(loss=summed)
    model = trained(job)
    trace = float(dense_hessian(job, model, everything(job)).trace())
    point = sharpness(job, model, micro_batch=20, precision=0.05)
    assert abs(point.trace.value - trace) < 4 * point.trace_error
    assert point.trace_error < 0.05 * trace


class Attention(nn.Module):
    """One layer of attention, causal, over 6 places."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unsqueeze(1).chunk(3, -1)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.squeeze(1)).mean(1)


def test_attention_without_second_derivative_takes_differences_and_says_so() -> None:
    x = torch.randn(40, 6, 8, generator=torch.Generator().manual_seed(0))
    job = small_job(model=Attention, data=(x, torch.arange(40) % 3))

    def by_math(model: nn.Module, batch: Any) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return F.cross_entropy(model(batch[0]), batch[1])

    model = trained(job, 20)
    point = sharpness(job, model, precision=0.2)
    truth = sharpness(dataclasses.replace(job, loss=by_math), model, precision=0.2)
    assert "central differences" in point.method
    assert truth.method == "double backward"
    assert point.top.value == pytest.approx(truth.top.value, rel=2e-3)  # said: 1e-3
    if point.passes["products"] == truth.passes["products"]:
        assert point.trace.value == pytest.approx(truth.trace.value, rel=5e-3)


class Once(torch.autograd.Function):
    """Squares; its backward pass is said to have no derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # pyrefly: ignore
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyrefly: ignore
        return 2 * ctx.saved_tensors[0] * grad


def test_a_loss_without_second_derivative_is_refused() -> None:
    def squares(model: nn.Module, batch: Any) -> Tensor:
        once: Any = Once.apply
        return once(model(batch[0])).mean()

    job = small_job(loss=squares)
    for micro_batch in (None, 10):
        with pytest.raises(rb.JobError, match=r"no second derivative(.|\n)*once_diff"):
            sharpness(job, micro_batch=micro_batch)
    exact = small_job(loss=lambda model, b: model(b[0]).square().mean())
    by_hand = sharpness(job, method="differences", precision=0.5)
    assert by_hand.top.value == pytest.approx(sharpness(exact).top.value, rel=1e-3)
    half = small_job(model=lambda: nn.Linear(8, 3).half())
    with pytest.raises(rb.JobError, match="float16"):
        sharpness(half)
    cut = small_job(loss=lambda m, b: F.cross_entropy(m(b[0]).detach(), b[1]))
    with pytest.raises(rb.JobError, match="does not depend on the parameters"):
        sharpness(cut)


def test_points_and_settings_that_make_no_sense_are_refused() -> None:
    job = small_job()
    model = job.make_model()
    with pytest.raises(rb.SettingError, match="examples=97, 96 examples"):
        sharpness(job, model, examples=97)
    with pytest.raises(rb.SettingError, match="batch_size=97"):
        batch_sharpness(job, model, batch_size=97)
    wrong: Any = "test"
    with pytest.raises(rb.SettingError, match="mode='test'"):
        sharpness(job, model, mode=wrong)
    with pytest.raises(rb.SettingError, match="147 of 147"):
        sharpness(job, model, top=147)
    with torch.no_grad():
        next(model.parameters())[0, 0] = math.nan
    with pytest.raises(rb.NotFiniteError, match="loss nan"):
        sharpness(job, model)
    root = small_job(loss=lambda m, b: (m(b[0]) - m(b[0])).square().sum().sqrt())
    with pytest.raises(rb.NotFiniteError, match="not finite"):
        sharpness(root)


def test_a_rise_that_is_no_number_is_refused() -> None:
    """A weight in a logarithm: one step uphill it is below zero."""

    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor([0.01, 1.0]))

        def forward(self, x: Tensor) -> Tensor:
            return (x[:, :1] * self.w[1]).square() + self.w[0].log()

    job = small_job(model=Scale, loss=lambda m, b: -m(b[0].float()).mean())
    with pytest.raises(rb.NotFiniteError, match="a small step away"):
        sharpness(job)


def test_over_nothing_there_is_no_ratio() -> None:
    point = sharpness(small_job(), most_probes=4)
    flat = dataclasses.replace(point, sam=rb.Estimate.exact(0.0))
    assert not compare_sharpness(point, flat)["sam"].bounded


def test_a_loss_of_straight_pieces_has_no_top_eigenvalue() -> None:
    def make() -> nn.Module:
        return nn.Linear(8, 1).double()

    job = small_job(model=make, loss=lambda m, b: m(b[0]).mean())
    with pytest.raises(rb.UnidentifiedError, match="all are zero"):
        sharpness(job)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_model_and_random_numbers_are_untouched(mode: Any) -> None:
    def make() -> nn.Module:
        norm = nn.BatchNorm1d(12)
        layers = [nn.Linear(8, 12), norm, nn.Dropout(0.3), nn.Linear(12, 3)]
        return nn.Sequential(*layers).double()

    job = small_job(model=make)
    model = trained(job, 5)
    list(model.modules())[2].eval()
    next(model.parameters()).requires_grad_(False)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    places = [p.data_ptr() for p in model.parameters()]
    gradients = [p.grad for p in model.parameters()]
    torch.manual_seed(5)
    before = torch.get_rng_state(), str(np.random.get_state())
    point = sharpness(job, model, mode=mode, method="differences", most_probes=4)
    again = sharpness(job, model, mode=mode, method="differences", most_probes=4)
    batch_sharpness(job, model, mode=mode, batches=3)
    assert point == again
    assert torch.equal(torch.get_rng_state(), before[0])
    assert str(np.random.get_state()) == before[1]
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])
    assert places == [p.data_ptr() for p in model.parameters()]
    assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))
    assert [m.training for m in model.modules()] == [True, True, False, True, True]
    assert [p.requires_grad for p in model.parameters()] == [False] + [True] * 5
    assert any("96 frozen" in note for note in point.notes)


def test_memory_that_runs_out_halves_the_micro_batch() -> None:
    def hungry(model: nn.Module, batch: Any) -> Tensor:
        if len(batch[0]) > 30:
            raise torch.OutOfMemoryError("out of memory")
        return F.cross_entropy(model(batch[0]), batch[1])

    job = small_job(loss=hungry)
    point = sharpness(job, most_probes=4)
    assert point.micro_batch == 24
    whole = sharpness(small_job(), most_probes=4)
    assert point.top.value == pytest.approx(whole.top.value)


def test_interval_of_the_trace_holds_it_as_often_as_it_says() -> None:
    """Stein's rule over 400 seeds: 95 % of intervals, within 4 standard errors."""
    job = small_job()
    model = trained(job, 5)
    with hessian_of(job, model, torch.arange(96), 96, mode="eval") as hessian:
        dense = torch.stack(
            [hessian.product(row) for row in torch.eye(hessian.size).double()]
        )
        hessian.product = lambda vector: dense @ vector  # type: ignore[method-assign]
        basis = torch.linalg.qr(dense[:, :2])[0].T
        captured = float((basis @ dense @ basis.T).trace())
        top = Top((), basis[:0], basis, captured)
        traces = [
            trace_of(hessian, top, precision=0.1, most=10_000, seed=seed)
            for seed in range(400)
        ]
    truth = float(dense.trace())
    held = np.mean([t.estimate.low <= truth <= t.estimate.high for t in traces])
    assert abs(held - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 400)
    assert len({t.probes for t in traces}) > 20  # the rule was at work
    mean = np.mean([t.estimate.value for t in traces])
    scatter = np.std([t.estimate.value for t in traces]) / math.sqrt(400)
    assert abs(mean - truth) < 4 * scatter
    assert np.std([t.estimate.value for t in traces]) < 0.13 * truth


def test_batch_sharpness_is_its_definition() -> None:
    """In a regression every batch's Hessian is 2 X'X / B: 3,000 batches by hand."""
    job = regression_job(examples=200)
    model = job.make_model()
    x, y = (t.double().numpy() for t in job.data)
    weights = next(model.parameters()).detach().double().numpy().ravel()
    random, curvatures, squares = np.random.default_rng(0), [], []
    for _ in range(3000):
        chosen = random.permutation(200)[:10]
        rows, errors = x[chosen], x[chosen] @ weights - y[chosen, 0]
        gradient = 2 * rows.T @ errors / 10
        curvatures.append(2 * np.square(rows @ gradient).sum() / 10)
        squares.append(gradient @ gradient)
    truth = np.mean(curvatures) / np.mean(squares)
    estimate = batch_sharpness(job, model, batch_size=10, batches=100)
    assert estimate.low < truth < estimate.high
    assert estimate.relative < 0.15
    whole = batch_sharpness(job, model, batch_size=200, batches=3)
    gradient = 2 * x.T @ (x @ weights - y[:, 0]) / 200
    exact = 2 * np.square(x @ gradient).sum() / 200 / (gradient @ gradient)
    assert whole.value == pytest.approx(exact, rel=1e-4)


def test_unmatched_losses_and_other_examples_are_not_compared() -> None:
    job = small_job()
    early, late = trained(job, 5), trained(job, 80)
    points: list[Sharpness] = [sharpness(job, m, examples=90) for m in (early, late)]
    losses = f"{points[0].loss:.4g} and {points[1].loss:.4g}"
    with pytest.raises(rb.SettingError, match=losses):
        compare_sharpness(*points)
    with pytest.raises(rb.SettingError, match=r"90 examples .* and 60 examples"):
        compare_sharpness(points[0], sharpness(job, early, examples=60))
    with pytest.raises(rb.SettingError, match=r"eval mode and .* train mode"):
        compare_sharpness(points[0], sharpness(job, early, examples=90, mode="train"))


def test_it_prints_within_80_columns() -> None:
    point = sharpness(small_job(), top=2, precision=1e-4, most_probes=8)
    lines = str(point).splitlines()
    assert max(map(len, lines)) <= 80
    assert "standard error" in lines[3]
    assert "8 were made" in lines[-1]
