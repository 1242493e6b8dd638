"""Ghost batch norm is what accumulation with BatchNorm does, in one pass."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import rightbatch as rb
from rightbatch.coupling import ghost_norm
from rightbatch.coupling.ghost_norm import GhostBatchNorm

SHAPES = [(24, 3), (24, 3, 5), (24, 2, 4, 3), (24, 2, 3, 2, 2)]


def by_groups(norm: Any, x: Tensor, sizes: list[int]) -> Tensor:
    """One group after another through BatchNorm, as accumulation calls it."""
    usual, outputs = norm.momentum, []
    for part in x.split(sizes):
        if usual is not None:
            norm.momentum = 1 - (1 - usual) ** (len(part) / len(x))
        outputs.append(norm(part))
    norm.momentum = usual
    return torch.cat(outputs)


class AnyBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Of inputs with any number of axes."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass


def compared(
    shape: tuple[int, ...],
    group: int,
    sizes: list[int],
    folds: bool,
    monkeypatch: pytest.MonkeyPatch,
    momentum: float | None = 0.1,
    affine: bool = True,
    track: bool = True,
) -> float:
    """The largest difference of output, gradients and statistics; float64."""
    monkeypatch.setattr(ghost_norm, "_folds", lambda x, group: folds)
    generator = torch.Generator().manual_seed(0)
    kinds: list[Any] = [
        GhostBatchNorm(shape[1], group, 1e-5, momentum, affine, track),
        AnyBatchNorm(shape[1], 1e-5, momentum, affine, track),
    ]
    x = torch.randn(shape, generator=generator, dtype=torch.float64) * 3 + 5
    dy = torch.randn(shape, generator=generator, dtype=torch.float64)
    seen: list[list[Tensor]] = []
    for norm in kinds:
        norm.double()
        if affine:
            with torch.no_grad():
                norm.weight.copy_(torch.arange(1, shape[1] + 1))
        leaf = x.clone().requires_grad_()
        for _ in range(2):
            ghost = isinstance(norm, GhostBatchNorm)
            y = norm(leaf) if ghost else by_groups(norm, leaf, sizes)
        y.backward(dy)
        grads = [p.grad for p in norm.parameters() if p.grad is not None]
        assert leaf.grad is not None
        seen.append([y.detach(), leaf.grad, *grads, *norm.buffers()])
    assert len(seen[0]) == 2 + 2 * affine + 3 * track
    return max(
        float((a.double() - b.double()).abs().max()) for a, b in zip(*seen, strict=True)
    )


@pytest.mark.parametrize("folds", [False, True])
@pytest.mark.parametrize("momentum", [0.1, 1.0, None])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_batchnorm_of_each_group(
    shape: tuple[int, ...],
    momentum: float | None,
    folds: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of 24 examples in groups of 6, and of 7 with the last of 10."""
    for group, sizes in ((6, [6] * 4), (7, [7, 7, 10])):
        difference = compared(shape, group, sizes, folds, monkeypatch, momentum)
        assert difference <= 1e-12


@pytest.mark.parametrize("folds", [False, True])
@pytest.mark.parametrize(("affine", "track"), [(False, True), (True, False)])
def test_without_weights_or_statistics(
    affine: bool, track: bool, folds: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    difference = compared(
        (24, 3), 8, [8] * 3, folds, monkeypatch, affine=affine, track=track
    )
    assert difference <= 1e-12


@settings(max_examples=40, deadline=None)
@given(examples=st.integers(2, 40), group=st.integers(2, 12), seed=st.integers(0, 9))
def test_groups_do_not_touch(examples: int, group: int, seed: int) -> None:
    """Other examples of other groups change no bit of a group's outputs."""
    torch.manual_seed(seed)
    norm, x = GhostBatchNorm(2, group), torch.randn(examples, 2)
    y = norm(x)
    if examples >= 2 * group:
        x[group:] += torch.randn(examples - group, 2)
        assert torch.equal(norm(x)[:group], y[:group])


def test_in_eval_mode_it_is_batchnorm() -> None:
    torch.manual_seed(0)
    plain = nn.BatchNorm2d(3)
    plain(torch.randn(8, 3, 4, 4))
    norm = GhostBatchNorm(3, group=4)
    norm.load_state_dict(plain.state_dict())
    x = torch.randn(9, 3, 4, 4)
    assert torch.equal(norm.eval()(x), plain.eval()(x))


@pytest.mark.parametrize("folds", [False, True])
def test_bfloat16_keeps_statistics_in_float32(
    folds: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against float32; bfloat16 has 8 bits."""
    monkeypatch.setattr(ghost_norm, "_folds", lambda x, group: folds)
    torch.manual_seed(0)
    norm, x = GhostBatchNorm(16, group=8), torch.randn(64, 16)
    whole = copy.deepcopy(norm)
    with torch.autocast("cpu", torch.bfloat16):
        y = norm(x.bfloat16())
        y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert norm.running_mean.dtype == norm.weight.grad.dtype == torch.float32
    assert torch.allclose(y.float(), whole(x), atol=0.03)
    assert torch.allclose(norm.running_var, whole.running_var, atol=1e-3)


def test_what_cannot_be_is_refused() -> None:
    for group in (1, 2.5, None):
        with pytest.raises(rb.SettingError, match="group"):
            GhostBatchNorm(3, group)  # pyrefly: ignore
    with pytest.raises(rb.JobError, match="examples and channels"):
        GhostBatchNorm(3, 2)(torch.randn(6))
    with pytest.raises(rb.JobError, match="examples and channels"):
        GhostBatchNorm(3, 2)(torch.randn(6, 4))


class Net(nn.Module):
    """A convolution, a hidden layer, a normalisation after each that takes its bias."""

    def __init__(self, group: int | None) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 4, 3, bias=False)
        self.first = nn.BatchNorm1d(4) if group is None else GhostBatchNorm(4, group)
        self.linear = nn.Linear(16, 8, bias=False)
        self.second = nn.BatchNorm1d(8) if group is None else GhostBatchNorm(8, group)
        self.head = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(self.conv(x)).relu().flatten(1)
        return self.head(self.second(self.linear(y)).relu())


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return (model(batch[0]) - batch[1]).square().mean()


@pytest.mark.parametrize("micro_batch", [48, 16])
def test_accumulation_with_batchnorm_is_ghost_batch_norm(micro_batch: int) -> None:
    """Gradient and running statistics, to 1e-12 of their size, after three batches."""
    torch.manual_seed(0)
    found = []
    batches = [
        (torch.randn(48, 2, 6).double(), torch.randn(48, 1).double()) for _ in range(3)
    ]
    for group in (None, 8):
        torch.manual_seed(1)
        model = Net(group).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        step = (
            rb.Accumulator(model, loss, optimizer, 8, coupled=True)
            if group is None
            else rb.Accumulator(model, loss, optimizer, micro_batch, check=False)
        )
        pieces = {step(batch).micro_batches for batch in batches}
        assert pieces == {6 if group is None else 48 // micro_batch}
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        found.append([*grads, *model.buffers()])
    assert len(found[0]) == 8 + 6
    for plain, ghost in zip(*found, strict=True):
        error = (plain - ghost).double().norm() / plain.double().norm()
        assert float(error) <= 1e-12
