"""Losses in tiles against the whole table, in value and in every gradient."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

import rightbatch as rb
from contrastive_losses import whole_info_nce, whole_nt_xent, whole_siglip
from rightbatch.coupling import tiled_cross_entropy

Loss = Callable[..., Tensor]


def features(
    count: int, dim: int = 16, rho: float = 0.0, seed: int = 0
) -> list[Tensor]:
    """Two of every example, normalized, in float64, as alike as told."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(2, count, dim, generator=generator, dtype=torch.float64)
    one, noise = normalize(drawn, dim=2)
    return [one, normalize(rho * one + (1 - rho**2) ** 0.5 * noise, dim=1)]


def gradients(loss: Loss, *inputs: Tensor) -> list[Tensor]:
    """The value and the gradient of every input, in float64."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    value = loss(*leaves)
    value.backward()
    return [
        value.detach().double(),
        *(x.grad.double() for x in leaves if x.grad is not None),
    ]


def error(found: Tensor, true: Tensor) -> float:
    """Relative, by norm."""
    return float((found - true).norm() / true.norm())


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


CASES: dict[str, tuple[Loss, Loss, list[Tensor]]] = {
    "two-sided": (
        lambda q, k, s: rb.coupling.info_nce(q, k, scale=s),
        whole_info_nce,
        [number(12.0)],
    ),
    "one-sided": (
        lambda q, k, s: rb.coupling.info_nce(q, k, scale=s, two_sided=False),
        lambda q, k, s: whole_info_nce(q, k, s, two_sided=False),
        [number(12.0)],
    ),
    "more negatives": (
        lambda q, k, s: rb.coupling.info_nce(q[: len(q) - 3], k, scale=s),
        lambda q, k, s: whole_info_nce(q[: len(q) - 3], k, s),
        [number(12.0)],
    ),
    "views": (
        lambda q, k, t: rb.coupling.nt_xent(q, k, temperature=t),
        whole_nt_xent,
        [number(0.2)],
    ),
    "views, one-sided": (
        lambda q, k, t: rb.coupling.nt_xent(q, k, temperature=t, two_sided=False),
        lambda q, k, t: whole_nt_xent(q, k, t, two_sided=False),
        [number(0.2)],
    ),
    "siglip": (
        lambda q, k, s, b: rb.coupling.siglip(q, k, scale=s, bias=b),
        whole_siglip,
        [number(10.0), number(-4.0)],
    ),
}


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=25, deadline=None)
@given(count=st.integers(5, 40), side=st.integers(1, 17), seed=st.integers(0, 9))
def test_any_tiling_is_the_whole_table(
    case: str, count: int, side: int, seed: int
) -> None:
    """Value and gradients in float64, to 1e-12."""
    ours, whole, numbers = CASES[case]
    inputs = [*features(count, rho=0.5, seed=seed), *numbers]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiled_cross_entropy, "SIDE", side)
        found = gradients(ours, *inputs)
    for mine, true in zip(found, gradients(whole, *inputs), strict=True):
        assert error(mine, true) <= 1e-12


@pytest.mark.parametrize("case", CASES)
def test_gradcheck(case: str) -> None:
    ours, _, numbers = CASES[case]
    inputs = [*features(6, dim=3), *numbers]
    assert torch.autograd.gradcheck(ours, [x.requires_grad_() for x in inputs])
    for x in inputs:
        x.requires_grad_(False)


@pytest.mark.parametrize(
    ("count", "scale", "limit"),
    [
        (256, 14.3, 1.2e-6),
        (256, 30.0, 4e-6),
        (256, 44.0, 6e-6),
        (256, 100.0, 2e-5),
        (1024, 44.0, 6e-6),
        (2048, 100.0, 2e-5),
    ],
)
def test_pairs_told_well_apart_keep_their_gradient(
    count: int, scale: float, limit: float
) -> None:
    """In float32, pairs with a similarity of .9, where cross entropy leaves noise."""
    one, other = features(count, dim=64, rho=0.9)
    inputs = [one.float(), other.float(), torch.tensor(scale)]
    true = gradients(whole_info_nce, *(x.double() for x in inputs))
    found = gradients(lambda q, k, s: rb.coupling.info_nce(q, k, scale=s), *inputs)
    for mine, right in zip(found, true, strict=True):
        assert error(mine, right) <= limit

    def usual(q: Tensor, k: Tensor, s: Tensor) -> Tensor:
        table, labels = s * q @ k.T, torch.arange(len(q))
        return (cross_entropy(table, labels) + cross_entropy(table.T, labels)) / 2

    if scale >= 30:  # the error that this avoids is there
        assert error(gradients(usual, *inputs)[1], true[1]) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1.0, 30.0, 1000.0])
def test_similarities_of_any_range(dtype: torch.dtype, size: float) -> None:
    """Rows whose features differ in length a thousand times share no one shift."""
    one, other = features(64, seed=3)
    lengths = torch.logspace(-2, 1, 64, dtype=torch.float64)[:, None]
    inputs = [(size * lengths * x).to(dtype) for x in (one, other.flip(0))]
    true = gradients(
        lambda q, k: whole_info_nce(q, k, 1.0), *(x.double() for x in inputs)
    )
    found = gradients(lambda q, k: rb.coupling.info_nce(q, k, scale=1.0), *inputs)
    # similarities reach 100 * size**2, and carry an eps of that
    limit = torch.finfo(dtype).eps * (10 + 100 * size**2)
    for mine, right in zip(found, true, strict=True):
        assert error(mine, right) <= min(limit, 0.1 if size > 30 else 0.02)


def test_the_running_sums_are_chosen_by_themselves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken = []
    table = tiled_cross_entropy.Table
    whole = table.log_sums_of_any_range

    def noticed(self: object, *arguments: object) -> object:
        taken.append(1)
        return whole(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(table, "log_sums_of_any_range", noticed)
    one, other = (x.float() for x in features(32))
    rb.coupling.info_nce(one, other, scale=100.0)
    assert not taken
    rb.coupling.info_nce(one, other, scale=1000.0)
    assert taken


def test_half_precision_is_computed_in_float32() -> None:
    one, other = (x.bfloat16() for x in features(64))
    ours: Loss = lambda q, k: rb.coupling.info_nce(q, k, scale=10.0)  # ruff: ignore[lambda-assignment]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value, *found = gradients(ours, one, other)
        wide, *_ = gradients(ours, one.float(), other.float())
    true, *right = gradients(
        lambda q, k: whole_info_nce(q, k, 10.0), one.double(), other.double()
    )
    assert error(value, true) <= 1e-6
    assert error(wide, true) <= 1e-6
    for mine, exact in zip(found, right, strict=True):
        assert error(mine, exact) <= 4e-3  # is handed over in bfloat16


def test_features_that_need_no_gradient_get_none() -> None:
    one, other = features(8)
    one.requires_grad_()
    rb.coupling.info_nce(one, other, scale=3.0).backward()
    assert one.grad is not None
    assert other.grad is None


def test_two_examples_are_the_least() -> None:
    one, other = features(2)
    found = gradients(lambda q, k: rb.coupling.info_nce(q, k, scale=3.0), one, other)
    true = gradients(lambda q, k: whole_info_nce(q, k, 3.0), one, other)
    for mine, right in zip(found, true, strict=True):
        assert error(mine, right) <= 1e-12
    single = one[:1], other[:1]
    for loss in (
        lambda q, k: rb.coupling.info_nce(q, k, scale=3.0),
        lambda q, k: rb.coupling.nt_xent(q, k, temperature=0.1),
        lambda q, k: rb.coupling.siglip(q, k, scale=1.0, bias=0.0),
    ):
        with pytest.raises(rb.JobError, match="fewer than two examples"):
            loss(*single)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(value: float) -> None:
    one, other = features(8)
    one[3, 2] = value
    with pytest.raises(rb.NotFiniteError, match="not finite"):
        rb.coupling.info_nce(one, other, scale=3.0)
    with pytest.raises(rb.NotFiniteError, match="not finite"):
        rb.coupling.nt_xent(other, one, temperature=0.1)
    with pytest.raises(rb.NotFiniteError, match="not finite"):
        rb.coupling.siglip(other, one, scale=1.0, bias=0.0)
    with pytest.raises(rb.NotFiniteError, match="not finite"):
        rb.coupling.info_nce(other, other, scale=value)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda q, k: (q, k[:5]), "a query has no key"),
        (lambda q, k: (q, k[:, :5]), "differ in width"),
        (lambda q, k: (q.flatten(), k), "must be a matrix"),
        (lambda q, k: (q.long(), k), "must hold floats"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(change: Loss, match: str) -> None:
    with pytest.raises(rb.SettingError, match=match):
        rb.coupling.info_nce(*change(*features(8)), scale=3.0)


def test_a_scale_that_has_come_to_zero_tells_nothing_apart() -> None:
    """A trained one does, by ``exp``, where a run diverges: chance, and a gradient."""
    one, other = features(8)
    scale = torch.zeros((), dtype=one.dtype, requires_grad=True)
    value = rb.coupling.info_nce(one, other, scale=scale)
    value.backward()
    assert float(value.detach()) == pytest.approx(math.log(8))
    table = one @ other.T
    true = table.mean() - table.diagonal().mean()  # of a softmax of equal shares
    assert scale.grad is not None
    assert float(scale.grad) == pytest.approx(float(true))


def test_scales_that_make_no_sense_are_refused() -> None:
    one, other = features(8)
    with pytest.raises(rb.SettingError, match="must not be negative"):
        rb.coupling.info_nce(one, other, scale=-3.0)
    with pytest.raises(rb.NotFiniteError, match="temperature above zero"):
        rb.coupling.nt_xent(one, other, temperature=0.0)
    with pytest.raises(rb.SettingError, match="must be one number"):
        rb.coupling.info_nce(one, other, scale=torch.ones(8))


def test_a_second_derivative_is_refused() -> None:
    one, other = features(8)
    one.requires_grad_()
    for loss in (
        rb.coupling.info_nce(one, other, scale=3.0),
        rb.coupling.siglip(one, other, scale=3.0, bias=0.0),
    ):
        with pytest.raises(rb.SettingError, match="no second derivative"):
            torch.autograd.grad(loss, one, create_graph=True)


def test_a_loss_may_be_differentiated_twice_over() -> None:
    """The graph can be kept: the saved tensors are not written to."""
    one, other = features(8)
    one.requires_grad_()
    for loss in (
        rb.coupling.info_nce(one, other, scale=3.0),
        rb.coupling.siglip(one, other, scale=3.0, bias=0.0),
    ):
        first, second = (
            torch.autograd.grad(loss, one, retain_graph=True)[0] for _ in range(2)
        )
        assert torch.equal(first, second)
