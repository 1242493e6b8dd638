"""Norms taken inside the weight gradient equal those of single backward passes.

Every layer kind, random shapes, groups of any size and every example by itself; in
double precision, so that 1e-6 relative is a statement about formulas.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from reference import group_gradients
from rightbatch.noise.capture.function_mode import CaptureMode
from rightbatch.noise.capture.gradient_formulas import gram_norms
from rightbatch.noise.capture.group_norms import GroupNorms, ParameterKey
from rightbatch.noise.capture.layout import Groups
from rightbatch.noise.capture.plan import Plan
from rightbatch.noise.capture.verification import ZERO, Verdict, verify
from rightbatch.noise.model_inputs import ModelInputs

Case = tuple[nn.Module, list[Tensor]]


def first(out: Any) -> Tensor:
    return first(out[0]) if isinstance(out, tuple) else out


def summed(axis: int) -> Callable[[Any, list[Tensor]], Tensor]:
    """A loss whose gradient differs from entry to entry, summed over examples."""

    def loss(model: Any, inputs: list[Tensor]) -> Tensor:
        out = first(model(*[x.transpose(0, 1) if axis else x for x in inputs]))
        out = out.transpose(0, 1) if axis else out
        weight = torch.arange(1, out[0].numel() + 1, dtype=out.dtype) / out[0].numel()
        return (out.flatten(1).sin() * weight).sum()

    return loss


def watched(
    model: nn.Module,
    call: Callable[[], Tensor],
    norms: GroupNorms,
    plan: Plan,
    inputs: list[Tensor],
    axis: int = 0,
) -> tuple[CaptureMode, Verdict | None]:
    """One pass: the first makes the plan, all others follow it."""
    given = ModelInputs.of(inputs, {}, axis)
    assert given is not None
    mode = CaptureMode(
        list(model.parameters()),
        norms,
        plan,
        verifies=not plan.routes,
        examples_axis=given.examples_axis,
    )
    outputs: list[Any] = []
    hook = model.register_forward_hook(lambda m, a, out: outputs.append(out))
    with mode:
        value = call()
    hook.remove()
    verdict = verify(mode, outputs) if mode.verifies else None
    value.backward()
    norms.close()
    mode.release()
    return mode, verdict


def run(
    model: nn.Module,
    inputs: list[Tensor],
    count: int,
    axis: int = 0,
    strided: bool = False,
) -> tuple[GroupNorms, Plan, list[Tensor | None]]:
    """Watched passes until one follows a plan, as in training."""
    batch, loss = len(inputs[0]), summed(axis)
    shared: set[ParameterKey] = set()
    plan = Plan()
    parameters = list(model.parameters())
    order = (
        Groups.of(batch, count).strided_order(torch.device("cpu")) if strided else None
    )
    given = [x.transpose(0, 1) for x in inputs] if axis else inputs
    for _ in range(5):
        for p in parameters:
            p.grad = None
        cut = order if plan.routes else None  # what verifies takes them as they are
        norms = GroupNorms(batch, count, shared, order=cut)
        mode, verdict = watched(
            model, lambda: loss(model, inputs), norms, plan, given, axis
        )
        shared |= norms.newly_shared
        if verdict is None:
            assert not mode.departed
            break
        assert not verdict.problem
        if verdict.relearn:
            plan.routes = {p: r for p, r in plan.routes.items() if r == "rows"}
            plan = Plan(plan.routes)
    return norms, plan, [p.grad for p in parameters]


def agrees(
    model: nn.Module,
    inputs: list[Tensor],
    count: int,
    axis: int = 0,
    strided: bool = False,
) -> None:
    """Norms of all groups, the total and the gradient itself are the reference's."""
    model.double()
    inputs = [x.double() if x.is_floating_point() else x for x in inputs]
    batch = len(inputs[0])
    plain = summed(axis)(model, inputs)
    truth = torch.autograd.grad(plain, list(model.parameters()), allow_unused=True)
    group_norms, plan, grads = run(model, inputs, count, axis, strided)
    by_count = {}
    for k in {count, batch, max(2, count // 2)}:
        groups = Groups.of(batch, k)
        moved = inputs
        if strided and k < batch:
            order = Groups.of(batch, count).strided_order(torch.device("cpu"))
            moved = [x[order] for x in inputs]
        bounds = [0, *itertools.accumulate(groups.sizes)]
        parts = group_gradients(model, summed(axis), moved, bounds)
        by_count[groups.count] = parts
    scale = max(float(g.norm()) for g in truth if g is not None)
    for index, (name, _) in enumerate(model.named_parameters()):
        whole, got = truth[index], grads[index]
        if whole is None:
            continue
        assert got is not None
        torch.testing.assert_close(got, whole, rtol=1e-6, atol=1e-12 * scale)
        if plan.refused.get(index) == ZERO:
            assert float(whole.norm()) < 1e-12 * scale
            continue
        assert index in plan.confirmed, (name, plan.refused)
        keys = [k for k in group_norms.squares if k.index == index]
        assert keys, f"{name} was not seen"
        squares = sum(group_norms.squares[k] for k in keys)
        assert isinstance(squares, Tensor)
        parts = by_count[group_norms.groups[keys[0]].count]
        norms = torch.stack([part[index].square().sum() for part in parts])
        zero = 1e-14 * scale**2  # below, a gradient that is zero but for rounding
        if strided and group_norms.groups[keys[0]].count == batch:
            norms, squares = norms.sort()[0], squares.sort()[0]
        torch.testing.assert_close(squares, norms, rtol=1e-6, atol=zero, msg=name)
        total = sum(group_norms.totals[k] for k in keys)
        torch.testing.assert_close(
            total, whole.square().sum(), rtol=1e-6, atol=zero, msg=name
        )


# Each kind draws its shape from the integers a, b, c (1 to 4) and the batch.


def linear(n: int, a: int, b: int, c: int) -> Case:
    model = nn.Sequential(nn.Linear(a + 1, b + 2), nn.Tanh(), nn.Linear(b + 2, c))
    return model, [torch.randn(n, *[c + 1] * (b % 3), a + 1)]


def wide_linear(n: int, a: int, b: int, c: int) -> Case:
    return nn.Linear(8 * a, 9 * b), [torch.randn(n, 6 * c, 8 * a)]


def conv1d(n: int, a: int, b: int, c: int) -> Case:
    layer = nn.Conv1d(2 * a, 2 * b, c, stride=a, padding=b % 3, dilation=1 + c % 2)
    return layer, [torch.randn(n, 2 * a, 12)]


def conv2d(n: int, a: int, b: int, c: int) -> Case:
    padding: Any = "same" if c % 2 else b
    stride = 1 if c % 2 else (1 + a % 2, 1)
    model = nn.Sequential(
        nn.Conv2d(2 * a, 2 * b, (c, 3), stride, padding, groups=2),
        nn.ReLU(inplace=True),
        nn.Conv2d(2 * b, 24, 3, padding=1, bias=False),
    )
    return model, [torch.randn(n, 2 * a, 6, 7)]


def conv3d(n: int, a: int, b: int, c: int) -> Case:
    return nn.Conv3d(a, b, (c, 1, 2), padding=(1, 0, 1)), [torch.randn(n, a, 5, 3, 4)]


def transposed(n: int, a: int, b: int, c: int) -> Case:
    return nn.ConvTranspose2d(a, b, c), [torch.randn(n, a, 4, 3)]


def embedding(n: int, a: int, b: int, c: int) -> Case:
    return nn.Embedding(3 * a, b, padding_idx=1), [torch.randint(0, 3 * a, (n, c))]


def norms(n: int, a: int, b: int, c: int) -> Case:
    return nn.Sequential(nn.LayerNorm([b, 2 * a]), nn.RMSNorm(2 * a)), [
        torch.randn(n, c, b, 2 * a)
    ]


def image_norms(n: int, a: int, b: int, c: int) -> Case:
    last = nn.InstanceNorm2d(2 * a, affine=True)
    # Without Tanh it takes GroupNorm's bias away, whose gradient is rounding alone.
    model = nn.Sequential(nn.GroupNorm(2, 2 * a), nn.Tanh(), last)
    return model, [torch.randn(n, 2 * a, b + 1, c + 1)]


def gru(n: int, a: int, b: int, c: int) -> Case:
    layer = nn.GRU(a, b, num_layers=1 + c % 2, batch_first=True, bidirectional=c > 2)
    return layer, [torch.randn(n, c + 1, a)]


class Cells(nn.Module):
    """One cell used at every step: its parts add before the norm is taken."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.cell, self.gate = nn.LSTMCell(a, b), nn.Bilinear(b, a, 2)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
        assert state is not None
        return self.gate(state[0], x[:, 0])


def cells(n: int, a: int, b: int, c: int) -> Case:
    return Cells(a, b), [torch.randn(n, c, a)]


class Plain(nn.Module):
    """Parameters that belong to no layer."""

    def __init__(self, width: int, length: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.places = nn.Parameter(torch.randn(1, length + 3, width))
        self.scale, self.shift = (nn.Parameter(torch.randn(width)) for _ in "ab")
        self.factor = nn.Parameter(torch.tensor(0.7))
        self.product, self.other = (
            nn.Parameter(torch.randn(*shape)) for shape in ((width, 2), (3, width))
        )
        self.unknown = nn.Parameter(torch.randn(2, width))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        x = x + self.places[:, : x.shape[1]]
        x = self.factor * (self.scale * x - self.shift)
        mixed = torch.einsum("btd,kd->btk", x, self.unknown)
        return torch.cat([x @ self.product, x @ self.other.t(), mixed], -1)


def plain(n: int, a: int, b: int, c: int) -> Case:
    # With the token a length that equals the batch is ambiguous: that is refused.
    length = c if c + 1 != n else c + 1
    return Plain(2 * a, length), [torch.randn(n, length, 2 * a)]


class Tied(nn.Module):
    """An embedding that is the output layer, a layer used twice, positions."""

    def __init__(self, rows: int, width: int, form: int) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(rows, width), nn.Embedding(9, width)
        self.mix, self.form = nn.Linear(width, width), form
        self.head = nn.Linear(width, rows, bias=False)
        self.head.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1])
        x = self.words(ids) + self.places(places[None] if self.form % 2 else places)
        x = self.mix(torch.tanh(self.mix(x)))
        if self.form == 1:
            return x @ self.words.weight.t()
        out = self.head(x)
        return out if self.form < 3 else out + self.head(self.words(ids))


def tied(n: int, a: int, b: int, c: int) -> Case:
    # A length that equals the batch is ambiguous: only the monitor's own test tells.
    length = c + 1 if c + 1 != n else c + 2
    return Tied(3 * a, 2 * b, c), [torch.randint(0, 3 * a, (n, length))]


class Attention(nn.Module):
    def __init__(self, width: int, other: int, form: int) -> None:
        super().__init__()
        more = {"kdim": other, "vdim": other} if form == 1 else {}
        self.form = form
        self.inner = nn.MultiheadAttention(
            width, 2, batch_first=True, add_bias_kv=form == 2, **more
        )

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        keys = x if self.form == 3 else y
        return self.inner(x, keys, keys, need_weights=False)[0]


def attention(n: int, a: int, b: int, c: int) -> Case:
    other = b if c == 1 else 2 * a
    return Attention(2 * a, other, c), [
        torch.randn(n, b + 1, 2 * a),
        torch.randn(n, c + 1, other),
    ]


def encoder(n: int, a: int, b: int, c: int) -> Case:
    layer = nn.TransformerEncoderLayer(2 * a, 2, 3 * b, dropout=0.0, batch_first=True)
    return layer, [torch.randn(n, c + 1, 2 * a)]


KINDS = [
    *(linear, wide_linear, conv1d, conv2d, conv3d, transposed, embedding, norms),
    *(image_norms, gru, cells, plain, tied, attention, encoder),
]
SMALL = st.integers(1, 4)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_norms_are_those_of_single_passes(
    kind: Callable[[int, int, int, int], Case], data: Any
) -> None:
    batch = data.draw(st.integers(2, 9))
    count = data.draw(st.integers(2, batch))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    model, inputs = kind(batch, *(data.draw(SMALL) for _ in range(3)))
    agrees(model, inputs, count)


@pytest.mark.parametrize("kind", [linear, conv2d, embedding, norms, gru, tied])
def test_groups_taken_across_the_batch_are_those_examples(
    kind: Callable[[int, int, int, int], Case],
) -> None:
    torch.manual_seed(1)
    agrees(*kind(8, 2, 3, 2), count=4, strided=True)


@pytest.mark.parametrize("count", [2, 3, 7])
def test_length_first_is_understood(count: int) -> None:
    # The batch is on the second axis: torch's own default for these layers.
    torch.manual_seed(0)
    layer = nn.TransformerDecoderLayer(6, 2, 8, dropout=0.0)
    agrees(layer, [torch.randn(7, 5, 6), torch.randn(7, 3, 6)], count, axis=1)
    agrees(nn.LSTM(3, 4, 2), [torch.randn(7, 5, 3)], count, axis=1)


def test_the_gram_form_is_the_sum_written_out() -> None:
    x, g = torch.randn(3, 5, 4).double(), torch.randn(3, 5, 2).double()
    truth = torch.einsum("krp,krd->kpd", g, x).square().sum((1, 2))
    torch.testing.assert_close(gram_norms(x, g), truth.sqrt())


def test_hooks_leave_double_backward_alone() -> None:
    # A gradient penalty differentiates through the hook.
    model, x = nn.Linear(3, 1).double(), torch.randn(5, 3).double()

    def penalty() -> Tensor:
        out = torch.tanh(model(x)).sum()
        (slope,) = torch.autograd.grad(out, [model.weight], create_graph=True)
        return slope.square().sum()

    (truth,) = torch.autograd.grad(penalty(), [model.weight])
    plan = Plan()
    for _ in range(2):  # one that verifies, one that takes the gradient over
        group_norms = GroupNorms(5, 5)
        model.zero_grad()
        watched(model, penalty, group_norms, plan, [x])
        assert model.weight.grad is not None
        torch.testing.assert_close(model.weight.grad, truth)
        assert group_norms.differentiated  # and so nothing is concluded from it


def test_half_precision_norms_are_taken_in_single() -> None:
    # Squares of 300 overflow float16; bfloat16 keeps 8 bits: 1 % of the norm.
    torch.manual_seed(0)
    model = nn.Linear(40, 30)
    x = torch.randn(16, 40) * 20
    plan = Plan()

    def loss() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            out = model(x)
        assert out.dtype == torch.bfloat16
        return (out.float() * 20).square().sum()

    for _ in range(2):
        group_norms = GroupNorms(16, 4)
        model.zero_grad()
        watched(model, loss, group_norms, plan, [x])
    assert plan.confirmed == {0, 1}
    assert model.weight.grad is not None
    assert model.weight.grad.dtype == torch.float32
    for squares in group_norms.squares.values():
        assert squares.dtype == torch.float32
        assert squares.isfinite().all()
    whole = math.sqrt(sum(float(t) for t in group_norms.totals.values()))
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    truth = math.sqrt(sum(float(g.square().sum()) for g in grads))
    assert whole == pytest.approx(truth, rel=1e-2)


def test_frozen_and_conflicting_parameters() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.whole, self.rest = nn.Parameter(torch.randn(4, 4)), nn.Linear(4, 4)
            self.rest.bias.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            return (
                F.linear(x @ self.whole[:, :2], self.whole[:3, :2])
                + self.rest(x)[:, :3]
            )

    model, x = Half(), torch.randn(6, 4)
    loss = summed(0)
    truth = torch.autograd.grad(loss(model, [x]), [model.whole, model.rest.weight])
    _, plan, grads = run(model, [x], 3)
    torch.testing.assert_close(grads[0], truth[0])
    torch.testing.assert_close(grads[1], truth[1])
    # Two different views of one parameter, that overlap: their parts do not add up.
    assert "differs from the true one" in plan.refused[0]
    assert plan.confirmed == {1}
    assert model.rest.bias.grad is None
