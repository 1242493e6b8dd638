"""What a monitor reports is the truth, by one float64 pass for every example alone."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rightbatch.noise.model_inputs import ModelInputs
from rightbatch.noise.pass_pattern import Pass, PassPattern
from watched_loops import still, watch

pytestmark = pytest.mark.filterwarnings("ignore:NoiseMonitor")


def loss_of(out: Tensor, axis: int) -> Tensor:
    out = out.movedim(axis, 0).flatten(1)
    weight = torch.linspace(0.1, 1, out.shape[1], dtype=out.dtype)
    return (out.sin() * weight).sum(1).mean()


def reported(
    model: nn.Module, inputs: list[Tensor], axes: list[int | None], out: int = 0
) -> list[str]:
    """Parameters that are reported after five steps, and truly; [] for none."""
    model.double()
    axis = axes[0] or 0
    batch = inputs[0].shape[axis]
    optimizer = still(model)
    plain = torch.autograd.grad(
        loss_of(model(*inputs), out), list(model.parameters()), allow_unused=True
    )
    with watch(model, optimizer, groups="examples", batch_axis=axis) as monitor:
        for _ in range(5):
            optimizer.zero_grad()
            loss_of(model(*inputs), out).backward()
            optimizer.step()
        found = monitor.read(window=1)
    for p, gradient in zip(model.parameters(), plain, strict=True):
        if gradient is not None:
            torch.testing.assert_close(p.grad, gradient, rtol=1e-10, atol=1e-12)
    if not found.steps:
        assert found.problem
        return []
    seen = {
        n: p for n, p in model.named_parameters() if n not in found.coverage.missing
    }
    rows = []
    for b in range(batch):
        alone = [
            x if a is None else x.narrow(a, b, 1)
            for x, a in zip(inputs, axes, strict=True)
        ]
        grads = torch.autograd.grad(loss_of(model(*alone), out), list(seen.values()))
        rows.append(torch.cat([g.flatten() for g in grads]))
    matrix = torch.stack(rows)
    trace = float((matrix - matrix.mean(0)).square().sum() / (batch - 1))
    signal = float(matrix.mean(0).square().sum()) - trace / batch
    assert found.batch_size == batch
    assert found.trace.value == pytest.approx(trace, rel=1e-8)
    assert found.grad_norm_sq.value == pytest.approx(signal, rel=1e-6, abs=1e-9)
    return list(seen)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64) + torch.randn(
        1, dtype=torch.float64
    )


class By(nn.Module):
    """A linear layer, and whatever a function makes of it."""

    def __init__(self, function: Callable[..., Tensor], **shapes: Any) -> None:
        super().__init__()
        self.inner, self.function = nn.Linear(6, 8), function
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape)))

    def forward(self, x: Tensor, *more: Tensor) -> Tensor:
        return self.function(self, self.inner(x), *more)


@pytest.mark.parametrize("length", [4, 8, 3])
@pytest.mark.parametrize("axis", [0, 1])
def test_lengths_that_fit_the_batch_do_not_deceive(length: int, axis: int) -> None:
    torch.manual_seed(0)
    shape = (length, 4, 6) if axis else (4, length, 6)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    names = ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert reported(model, [randn(*shape)], [axis], axis) == names


@pytest.mark.parametrize("length", [4, 3])
def test_side_inputs_are_no_examples(length: int) -> None:
    torch.manual_seed(0)
    model = By(lambda m, x, cos, sin: x * cos + x.flip(-1) * sin)
    tables = [randn(length, 8), randn(length, 8)]
    names = ["inner.weight", "inner.bias"]
    assert reported(model, [randn(4, length, 6), *tables], [0, None, None]) == names


VIEWS: dict[str, tuple[Callable[..., Any], dict[str, Any], bool]] = {
    "slices": (
        lambda m, x: sum(F.linear(x, m.w[i * 8 : i * 8 + 8]) for i in range(3)),
        {"w": (24, 8)},
        True,
    ),
    "slices of the other axis": (
        lambda m, x: F.linear(x[:, :4], m.w[:, :4]) + F.linear(x[:, 4:], m.w[:, 4:]),
        {"w": (5, 8)},
        True,
    ),
    "parts of a vector": (lambda m, x: x[:, :4] * m.b[:4] + m.b[4:], {"b": 8}, True),
    "slices that overlap": (
        lambda m, x: F.linear(x, m.w[:5]) + F.linear(x, m.w[3:]),
        {"w": (8, 8)},
        False,
    ),
    "unsqueezed, and as it is": (lambda m, x: x * m.b[None] + m.b, {"b": 8}, True),
    "reshaped": (
        lambda m, x: x.view(-1, 2, 4) * m.b.reshape(2, 4),
        {"b": 8},
        True,
    ),
    "a transpose, and as it is": (
        lambda m, x: (x @ m.w.t()).tanh() @ m.w,
        {"w": (8, 8)},
        True,
    ),
    "exp": (lambda m, x: x * m.b.exp(), {"b": ()}, False),
    "a vector through linear": (
        lambda m, x: x + F.linear(m.b, m.w),
        {"b": 16, "w": (8, 16)},
        False,
    ),
    "divided": (lambda m, x: x / m.b, {"b": 8}, True),
}


@pytest.mark.parametrize("view", VIEWS)
def test_parts_and_views_are_right_or_left_out(view: str) -> None:
    torch.manual_seed(0)
    function, shapes, seen = VIEWS[view]
    names = reported(By(function, **shapes), [randn(4, 6)], [0])
    # Where less than half of the parameters is left, nothing is.
    assert (set(shapes) < set(names)) == seen


class Turned(nn.Module):
    """One table for ids, and for the same ids transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.mix = nn.Embedding(11, 6), nn.Linear(6, 6)

    def forward(self, ids: Tensor) -> Tensor:
        turned = self.table(ids.t()).transpose(0, 1)
        return F.linear(self.mix(self.table(ids) + turned).tanh(), self.table.weight)


@pytest.mark.parametrize("length", [3, 4, 8])
def test_ids_transposed_inside(length: int) -> None:
    torch.manual_seed(0)
    names = ["table.weight", "mix.weight", "mix.bias"]
    assert reported(Turned(), [torch.randint(11, (4, length))], [0]) == names


class Translator(nn.Module):
    """One table for encoder, decoder and output."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.mix = nn.Embedding(11, 6), nn.Linear(6, 6)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        memory = self.mix(self.table(source)).tanh().mean(1, keepdim=True)
        return F.linear(self.table(target).tanh() + memory, self.table.weight)


def test_a_table_for_encoder_decoder_and_output() -> None:
    torch.manual_seed(0)
    ids = [torch.randint(11, (4, 5)), torch.randint(11, (4, 3))]
    names = ["table.weight", "mix.weight", "mix.bias"]
    assert reported(Translator(), ids, [0, 0]) == names


@pytest.mark.parametrize("shape", [(4, 6), (4, 3, 6), (4, 4, 6)])
def test_what_is_changed_in_its_place(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    middle = nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True))
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), middle, nn.Linear(8, 2))
    assert len(reported(model, [randn(*shape)], [0])) == 6


@pytest.mark.parametrize("batch", [4, 6])
def test_a_frozen_batch_norm_with_as_many_channels_as_examples(batch: int) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4).eval()
    model = nn.Sequential(nn.Conv2d(2, 4, 3), norm, nn.Flatten(), nn.Linear(16, 3))
    assert len(reported(model, [randn(batch, 2, 4, 4)], [0])) == 6


def test_bags_of_ids_are_seen_as_rows_only() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.EmbeddingBag(9, 4, mode="sum"), nn.Linear(4, 3))
    names = ["0.weight", "1.weight", "1.bias"]
    assert reported(model, [torch.randint(9, (4, 5))], [0]) == names
    bag = nn.EmbeddingBag(9, 4)
    optimizer = still(bag)
    with watch(bag, optimizer) as monitor:
        for _ in range(3):
            bag(torch.randint(9, (7,)), torch.tensor([0, 2, 3])).sum().backward()
            optimizer.step()
        assert monitor.read().steps == 0


def test_what_changes_is_verified_again() -> None:
    """A second head, another length: what was not there at first is held against it."""
    torch.manual_seed(0)
    model = By(lambda m, x: x if x.shape[1] == 3 else x * m.b, b=8)
    optimizer = still(model)
    with watch(model, optimizer) as monitor:
        for length in (3, 3, 5, 5):
            optimizer.zero_grad()
            model(torch.randn(4, length, 6)).square().mean().backward()
            optimizer.step()
        found = monitor.read(window=1)
    assert found.coverage.parameters == 1.0
    assert found.coverage.verified


def test_gradients_that_are_zero_at_first_are_verified_later() -> None:
    torch.manual_seed(0)
    model = By(lambda m, x: x + x * m.a * m.b, a=8, b=8)
    nn.init.zeros_(dict(model.named_parameters())["b"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer) as monitor:
        for step in range(4):
            optimizer.zero_grad()
            model(torch.randn(4, 6)).square().mean().backward()
            optimizer.step()
            missing = monitor.read(window=1).coverage.missing
            if not step:
                assert "zero" in missing["a"]
    assert not missing


def test_passes_that_are_no_micro_batches_are_told() -> None:
    x = torch.randn(4, 3)

    def of(*args: Any, square: float = 1.0) -> Pass:
        inputs = ModelInputs.of(args, {}, 0)
        assert inputs is not None
        made = Pass(inputs)
        made.square = torch.tensor(square)
        return made

    pattern = PassPattern()
    assert "different ways" in pattern.difference([of(x, "a"), of(x, "b")], 4.0)
    assert "same examples" in pattern.difference([of(x), of(x.clone())], 4.0)
    torch.manual_seed(0)
    other, pattern = torch.randn(4, 3), PassPattern()
    for _ in range(30):
        squares = torch.rand(2).exp().tolist()
        passes = [of(x, square=squares[0]), of(other, square=squares[1])]
        assert pattern.difference(passes, sum(squares) * 1.1) == ""
    pattern, told = PassPattern(), []
    for _ in range(12):
        a = float(torch.rand(1).exp())
        passes = [of(x, square=3 * a), of(other, square=float(torch.rand(1).exp()))]
        told.append(pattern.difference(passes, 2 * a))
    assert told[0] == ""
    assert "another gradient than the last" in told[-1]


@pytest.mark.parametrize("extra", ["logging", "cleared", "twice"])
def test_passes_that_no_update_uses(extra: str) -> None:
    """Only the pass whose gradient is in the update is measured."""
    torch.manual_seed(0)
    model, x = nn.Linear(5, 3).double(), randn(8, 5)
    optimizer = still(model)
    reads = []
    for watched in ("", extra):
        with watch(model, optimizer, groups="examples") as monitor:
            for _ in range(6):
                optimizer.zero_grad(set_to_none=False)
                if watched == "cleared":
                    model(randn(8, 5)).square().mean().backward()
                    optimizer.zero_grad(set_to_none=False)
                out = model(x).square().mean()
                if watched == "twice":
                    (out / 2).backward(retain_graph=True)
                    out = out / 2
                out.backward()
                if watched == "logging":
                    model(randn(8, 5)).mean()
                optimizer.step()
            reads.append(monitor.read(window=1))
    assert reads[1].steps
    assert reads[1].batch_size == 8
    assert reads[1].trace.value == pytest.approx(reads[0].trace.value, rel=1e-6)
    assert math.isfinite(reads[1].trace.value)
