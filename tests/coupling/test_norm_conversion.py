"""BatchNorm layers are replaced in place, keep what they hold, and come back."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import rightbatch as rb
from rightbatch.coupling.ghost_norm import GhostBatchNorm
from rightbatch.coupling.norm_conversion import convert_norms, default_groups
from rightbatch.coupling.synchronized_norm import SyncBatchNorm

ARGUMENTS: dict[str, dict[str, Any]] = {
    "sync": {},
    "ghost": {"group": 4},
    "frozen": {},
    "group": {"groups": 2},
    "layer": {},
}
SAME_IN_EVAL = ("sync", "ghost", "frozen")
X = torch.randn(8, 2, 6, 6, generator=torch.Generator().manual_seed(0))


class Named(nn.BatchNorm1d):
    """A subclass that does the same."""


class Net(nn.Module):
    """Two kinds of layer, one of them used in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 8, 3, padding=1)
        shared = nn.BatchNorm2d(8, eps=1e-3, momentum=0.2)
        self.blocks = nn.ModuleList([shared, shared])
        self.plain = nn.BatchNorm2d(8, affine=False, momentum=None)
        self.last = Named(8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        for block in self.blocks:
            y = block(y).relu()
        return self.head(self.last(self.plain(y).mean((2, 3))))


def make(steps: int = 3) -> tuple[Net, torch.optim.Optimizer]:
    """A model with statistics and an optimizer with a state."""
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    train(model, optimizer, steps)
    return model, optimizer


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 1) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("to", ARGUMENTS)
def test_what_layers_hold_is_kept(to: Any) -> None:
    model, optimizer = make()
    model.last.weight.requires_grad_(False)
    model.plain.eval()
    before = {name: (p, p.clone()) for name, p in model.named_parameters()}
    state, modes = model.state_dict(), {n: m.training for n, m in model.named_modules()}
    outputs = copy.deepcopy(model).eval()(X)
    conversion = convert_norms(model, to, **ARGUMENTS[to])
    assert conversion.names == ("blocks.0", "plain", "last")
    assert model.blocks[0] is model.blocks[1]
    after = dict(model.named_parameters())
    assert list(after) == list(before)
    assert all(after[n] is p and torch.equal(p, v) for n, (p, v) in before.items())
    assert not model.last.weight.requires_grad
    assert {n: m.training for n, m in model.named_modules()} == modes
    if to in SAME_IN_EVAL:
        assert list(model.state_dict()) == list(state)
        assert torch.equal(copy.deepcopy(model).eval()(X), outputs)
    assert model.blocks[0].eps == 1e-3
    train(model, optimizer, 2)
    assert not torch.equal(after["blocks.0.weight"], before["blocks.0.weight"][1])
    assert torch.equal(model.last.weight, before["last.weight"][1])


@pytest.mark.parametrize("to", ARGUMENTS)
def test_undo_gives_the_layers_back_with_what_was_learned(to: Any) -> None:
    model, optimizer = make()
    layers = [model.blocks[0], model.plain, model.last]
    statistics = [b.clone() for b in model.buffers()]
    conversion = convert_norms(model, to, **ARGUMENTS[to])
    train(model, optimizer)
    model.eval()
    learned = copy.deepcopy(model)
    conversion.undo()
    assert [model.blocks[0], model.plain, model.last] == layers
    assert model.blocks[1] is model.blocks[0]
    assert not any(layer.training for layer in layers)
    assert all(map(torch.equal, learned.parameters(), model.parameters()))
    moved = not all(map(torch.equal, statistics, model.buffers()))
    assert moved == (to in ("sync", "ghost"))
    if to in SAME_IN_EVAL:
        assert torch.equal(learned(X), model(X))
    train(model.train(), optimizer)


def test_frozen_statistics_stay_and_examples_do_not_touch() -> None:
    model, _ = make()
    convert_norms(model, "frozen")
    statistics = [b.clone() for b in model.buffers()]
    y = model(X)
    assert torch.allclose(model(X[:1]), y[:1], atol=1e-6)
    assert all(map(torch.equal, statistics, model.buffers()))


def test_hooks_stay_and_can_be_removed() -> None:
    model, _ = make()
    seen: list[str] = []
    handle = model.last.register_forward_hook(
        lambda module, args, out: seen.append(type(module).__name__)
    )
    conversion = convert_norms(model, "layer")
    model(X)
    conversion.undo()
    model(X)
    handle.remove()
    model(X)
    assert seen == ["GroupNorm", "Named"]


def test_dtype_and_other_kinds() -> None:
    """Half of a model in float64, and torch's own SyncBatchNorm."""
    model = nn.Sequential(nn.BatchNorm1d(4).double(), nn.SyncBatchNorm(4))
    convert_norms(model, "ghost", group=2)
    assert [type(layer) for layer in model] == [GhostBatchNorm] * 2
    assert model[0].running_mean.dtype == torch.float64
    conversion = convert_norms(model, "sync")
    assert [type(layer) for layer in model] == [SyncBatchNorm] * 2
    assert conversion.names == ("0", "1")


def test_conversions_are_undone_in_turn() -> None:
    model, _ = make()
    first = convert_norms(model, "sync")
    second = convert_norms(model, "ghost", group=4)
    with pytest.raises(rb.SettingError, match="undo the later conversion first"):
        first.undo()
    second.undo()
    first.undo()
    assert type(model.last) is Named


class Activated(nn.BatchNorm1d):
    """Does something else too."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).relu()


def parametrized() -> nn.Module:
    layer = nn.BatchNorm1d(4)
    return nn.utils.parametrizations.weight_norm(layer)


@pytest.mark.parametrize(
    ("layer", "to", "text"),
    [
        (nn.LazyBatchNorm1d, "layer", "does not know its channels"),
        (
            lambda: nn.LazyBatchNorm1d(affine=False),
            "sync",
            "does not know its channels",
        ),
        (lambda: Activated(4), "sync", "its own forward pass"),
        (parametrized, "sync", "holds more"),
        (lambda: nn.BatchNorm1d(4, track_running_stats=False), "frozen", "no running"),
        (lambda: nn.BatchNorm1d(4), "frozen", "no statistics yet"),
        (lambda: nn.BatchNorm1d(2), "group", "has 2 channels"),
        (lambda: nn.BatchNorm1d(3), "layer", "has 3 channels"),
        (lambda: nn.LayerNorm(4), "group", "has no BatchNorm"),
    ],
)
def test_what_would_lose_something_is_refused(layer: Any, to: Any, text: str) -> None:
    """And nothing is replaced."""
    others = [] if "has no BatchNorm" in text else [nn.BatchNorm1d(4)]
    for other in others:
        other(torch.randn(8, 4))
    model = nn.Sequential(*others, layer())
    before = list(model)
    with pytest.raises(rb.JobError, match=text):
        convert_norms(model, to)
    assert list(model) == before


def test_arguments_that_make_no_sense_are_refused() -> None:
    model: Any = nn.Sequential(nn.BatchNorm1d(4))
    with pytest.raises(rb.SettingError, match="none of the kinds"):
        convert_norms(model, "instance")  # pyrefly: ignore
    with pytest.raises(rb.SettingError, match="group must be"):
        convert_norms(model, "ghost")
    with pytest.raises(rb.SettingError, match='for to="ghost" only'):
        convert_norms(model, "sync", group=4)
    with pytest.raises(rb.SettingError, match="divide the channels") as caught:
        convert_norms(model, "group", groups=3)
    assert "4 channels in 0" in str(caught.value)
    with pytest.raises(rb.JobError, match="itself"):
        convert_norms(model[0], "sync")
    assert type(model[0]) is nn.BatchNorm1d


@settings(deadline=None)
@given(channels=st.integers(1, 4096))
def test_default_groups_divide_and_hold_enough(channels: int) -> None:
    groups = default_groups(channels)
    assert channels % groups == 0
    assert 32 % groups == 0
    assert groups == 1 or channels // groups >= 16


def test_state_of_a_converted_model_fits_the_user_model() -> None:
    model, optimizer = make()
    other = copy.deepcopy(model)
    convert_norms(model, "ghost", group=4)
    train(model, optimizer)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.eval()(X), model.eval()(X))


def test_a_conversion_reads_as_one_line() -> None:
    model, _ = make()
    shown = repr(convert_norms(model, "ghost", group=4))
    assert shown == "3 BatchNorm -> GhostBatchNorm: blocks.0, plain, last"
