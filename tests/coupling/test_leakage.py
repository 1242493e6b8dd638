"""Every leak of the zoo is found at its place, nothing else; nothing is left behind."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rightbatch as rb
from coupling.zoo import BOTH, CLEAN, LEAKING, ROWS, WIDTH, Apply, Case, Experts, steps
from rightbatch.core.errors import RightbatchError

SEEDS = range(3)


@pytest.mark.parametrize("case", LEAKING + CLEAN, ids=lambda case: case.name)
def test_the_zoo(case: Case) -> None:
    for seed in SEEDS:
        torch.manual_seed(seed)
        leaks = rb.coupling.leaks(case.make(), case.batch(), **case.options)
        found = {(leak.across, leak.module): leak.modes for leak in leaks}
        assert found == case.leaks, f"seed {seed}: {leaks}"
        assert bool(leaks) == bool(case.leaks)
        assert all(leak.strength > 0 for leak in leaks)
        assert all(len(line) < 80 for line in str(leaks).splitlines())


def test_the_zoo_is_as_large_as_it_says() -> None:
    assert len(LEAKING) >= 18
    assert len({case.mechanism for case in LEAKING}) >= 12
    assert len(CLEAN) >= 14


@pytest.mark.parametrize("rows", [8, 16, 64])
def test_batch_norm_leaks_by_two_over_n(rows: int) -> None:
    """Against the Jacobian as autograd has it, and the law; three seeds, 20 %."""
    for seed in SEEDS:
        torch.manual_seed(seed)
        x = torch.randn(rows, 32)
        (leak,) = rb.coupling.leaks(nn.BatchNorm1d(32), x)
        norm = nn.BatchNorm1d(32)
        jacobian = torch.autograd.functional.jacobian(norm, x)
        squares = jacobian.square().sum((1, 3))
        own = squares.diagonal().sum()
        slow = float((squares.sum() - own) / own)
        assert leak.strength == pytest.approx(slow, rel=0.2)
        assert leak.strength == pytest.approx(2 / rows, rel=0.3)


@pytest.mark.parametrize("far", [0, 1, 3])
def test_how_far_ahead_is_seen(far: int) -> None:
    def ahead(_: nn.Module, x: Tensor) -> Tensor:
        return x + F.pad(x, (0, 0, 0, far))[:, far:] if far else x

    leaks = rb.coupling.leaks(Apply(ahead), steps(), time_axis=1)
    assert [leak.lookahead for leak in leaks] == ([far] if far else [])


def test_a_leak_in_one_pair_of_rows_is_found() -> None:
    """Every ordered pair is covered: one row reads one other, of nine."""
    for reader in range(9):
        reads = (reader + 4) % 9

        def peep(_: nn.Module, x: Tensor, i: int = reader, j: int = reads) -> Tensor:
            y = x.clone()
            y[i] += x[j]
            return y

        assert rb.coupling.leaks(Apply(peep), torch.randn(9, 2))


def test_a_softmax_made_safe_by_the_largest_of_all_is_clean() -> None:
    def safe(_: nn.Module, x: Tensor) -> Tensor:
        weights = (x - x.max()).exp()
        return weights / weights.sum(1, keepdim=True)

    torch.manual_seed(0)
    assert not rb.coupling.leaks(Apply(safe), torch.randn(ROWS, 3))


def test_masked_numbers_hide_nothing() -> None:
    def masked(_: nn.Module, x: Tensor) -> Tensor:
        y = x - x.mean(0)
        return y.masked_fill(x < -1, torch.finfo(x.dtype).min)

    torch.manual_seed(0)
    assert rb.coupling.leaks(Apply(masked), torch.randn(ROWS, 3))


def test_only_the_first_source_of_a_mode_is_named() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, 4), nn.Softmax(0))
    leaks = rb.coupling.leaks(model, torch.randn(ROWS, WIDTH))
    assert {leak.module: leak.modes for leak in leaks} == {
        "0": ("train",),
        "2": ("eval",),
    }
    # Compiled models would warn from then on.
    assert not nn.modules.module._has_any_global_hook()


def test_a_loss_that_calls_parts_of_the_model() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"a": nn.Linear(WIDTH, 4), "b": nn.BatchNorm1d(4)})

    def loss(model: Any, batch: Tensor) -> Tensor:
        return model["b"](model["a"](batch)).square().mean()

    (leak,) = rb.coupling.leaks(model, torch.randn(ROWS, WIDTH), loss=loss)
    assert (leak.across, leak.module, leak.modes) == ("examples", "b", ("train",))


def test_low_precision() -> None:
    """Bits stay also where they are few."""
    torch.manual_seed(0)
    x = torch.randn(ROWS, WIDTH).bfloat16()
    layers = [nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4)]
    model = nn.Sequential(*layers).bfloat16()
    assert not rb.coupling.leaks(model, x)
    model = nn.Sequential(layers[0], nn.BatchNorm1d(WIDTH), layers[2]).bfloat16()
    assert [leak.module for leak in rb.coupling.leaks(model, x)] == ["1"]


def test_what_does_not_repeat_is_said_and_its_spread_is_the_floor() -> None:
    source = random.SystemRandom()

    def shaky(_: nn.Module, x: Tensor) -> Tensor:
        return x + 1e-6 * source.random()

    leaks = rb.coupling.leaks(Apply(shaky), torch.zeros(ROWS, 2))
    assert not leaks.repeatable
    assert "small leaks are not seen" in str(leaks)

    def mean(_: nn.Module, x: Tensor) -> Tensor:
        return shaky(_, x) + x.mean(0)

    leaks = rb.coupling.leaks(Apply(mean), torch.randn(ROWS, 2))
    assert [leak.modes for leak in leaks] == [BOTH]


class Nuisance(nn.Module):
    """Changes whatever a pass can change; raises at a call if asked to."""

    def __init__(self, raises_at: int = -1) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(WIDTH, 4), nn.BatchNorm1d(4)
        self.teacher = nn.Linear(WIDTH, 4).requires_grad_(False)
        self.head = nn.Linear(4, 2)
        nn.init.zeros_(self.head.weight)
        self.seen: list[Tensor] = []
        self.raises_at, self.calls = raises_at, 0
        self.norm.eval()

    def forward(self, x: Tensor) -> Tensor:
        COUNTED.append(1)
        self.calls += 1
        self.seen.append(x)
        with torch.no_grad():
            self.teacher.weight.lerp_(self.linear.weight, 0.1)
        np.random.rand()
        random.random()
        torch.rand(1)
        if len(COUNTED) == self.raises_at:
            raise RuntimeError("enough")
        return self.head(self.norm(self.linear(x)) + self.teacher(x))


COUNTED: list[int] = []


def state(model: Nuisance) -> list[Any]:
    tensors = [*model.parameters(), *model.buffers(), torch.get_rng_state()]
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    modes = [m.training for m in model.modules()]
    drawn = [random.getstate(), str(np.random.get_state())]
    values = [t.detach().clone().tolist() for t in (*tensors, *gradients)]
    return [values, modes, drawn, model.calls, len(model.seen)]


@pytest.mark.parametrize("raises_at", [-1, 1, 5, 25])
def test_nothing_is_left_behind(raises_at: int) -> None:
    COUNTED.clear()
    torch.manual_seed(0)
    model = Nuisance()
    x = torch.randn(ROWS, WIDTH)
    model(x).sum().backward()
    model.raises_at = raises_at
    COUNTED.clear()
    before, kept = state(model), x.clone()
    if raises_at == 1:
        with pytest.raises(rb.JobError, match="enough"):
            rb.coupling.leaks(model, x)
    else:
        leaks = rb.coupling.leaks(model, x)
        assert not leaks
        assert bool(leaks.set_aside) == (raises_at > 0)
    assert len(COUNTED) >= raises_at  # the fault fired
    assert state(model) == before
    assert torch.equal(x, kept)
    assert not torch.nn.modules.module._global_forward_hooks


def fussy(_: nn.Module, x: Tensor) -> Tensor:
    if not torch.equal(x, torch.arange(8.0).view(4, 2)):
        raise ValueError("not what was ordered")
    return x


ORDERED = torch.arange(8.0).view(4, 2)


@pytest.mark.parametrize(
    ("model", "batch", "options", "message"),
    [
        (nn.Linear(2, 2), torch.randn(1, 2), {}, "no two examples"),
        (nn.Linear(2, 2), {"x": torch.randn(4, 2), "id": ["a"] * 4}, {}, "holds a str"),
        (nn.Linear(2, 2), (torch.randn(4, 2), torch.ones(3)), {}, r"\[3, 4\]"),
        (nn.Linear(2, 2), torch.tensor(1.0), {}, "no tensor with an axis"),
        (nn.Linear(2, 2), torch.full((4, 2), torch.nan), {}, "not a number"),
        (Apply(lambda _, x: x.sum()), torch.randn(4, 2), {}, r"outputs of shape \(\)"),
        (Apply(lambda _, x: x.item()), torch.ones(4), {}, "model raised RuntimeError"),
        (nn.Embedding(3, 2), torch.ones(4, 2).long(), {}, "as it is"),
        (Apply(fussy), ORDERED, {}, "not what was ordered"),
        (nn.Linear(2, 2), torch.randn(4, 2), {"time_axis": 0}, "time_axis=0"),
        (nn.Linear(2, 2), torch.randn(4, 2), {"time_axis": 2}, r"shapes "),
        (nn.Linear(2, 2), ORDERED, {"documents": torch.zeros(4, 2)}, "two documents"),
        (nn.Linear(2, 2), ORDERED, {"loss": fussy, "call": fussy}, "loss and call"),
        (nn.LazyLinear(2), ORDERED, {}, "lazy layer"),
    ],
)
def test_refusals(model: nn.Module, batch: Any, options: Any, message: str) -> None:
    with pytest.raises(RightbatchError, match=message):
        rb.coupling.leaks(model, batch, **options)


@pytest.mark.parametrize("far", [0, 1, 9])
def test_a_loss_may_cut_the_last_step_off(far: int) -> None:
    """Inputs and targets from one tensor, as language models have it."""

    def ahead(m: Any, x: Tensor) -> Tensor:
        y = m.embed(x)
        return y + sum(F.pad(y, (0, 0, 0, k))[:, k:] for k in range(1, far + 1))

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        return F.cross_entropy(model(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())

    torch.manual_seed(0)
    model = Apply(ahead, embed=nn.Embedding(7, 7))
    tokens = torch.randint(7, (ROWS, 10))
    leaks = rb.coupling.leaks(model, tokens, loss=loss, time_axis=1)
    assert [leak.across for leak in leaks] == ["time"] * (far > 0)
    assert [leak.lookahead for leak in leaks] == [float("inf") if far == 9 else far] * (
        far > 0
    )


def test_another_axis_as_long_as_the_batch_is_none_of_examples() -> None:
    torch.manual_seed(0)
    lstm = nn.LSTM(3, 4, 2, batch_first=True, bidirectional=True)
    assert not rb.coupling.leaks(lstm, torch.randn(4, 7, 3))  # four states

    def steps_first(m: Any, x: Tensor) -> Tensor:
        return m.inside(x.transpose(0, 1))[0]

    model = Apply(steps_first, inside=nn.GRU(3, 4))
    assert not rb.coupling.leaks(model, torch.randn(ROWS, ROWS, 3))


def test_a_compiled_model_is_watched_as_it_is_written() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, 4), nn.BatchNorm1d(4))
    compiled: Any = torch.compile(model, backend="eager")
    (leak,) = rb.coupling.leaks(compiled, torch.randn(ROWS, WIDTH))
    assert (leak.layer, leak.modes) == ("BatchNorm1d", ("train",))


def test_a_model_that_writes_to_its_input_does_so_to_a_copy() -> None:
    x = torch.randn(ROWS, 3)
    before = x.clone()
    assert not rb.coupling.leaks(Apply(lambda _, x: x.div_(2)), x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("what", ["dict", "list", "float", "tuple"])
def test_a_loss_that_returns_something_else_is_refused(what: str) -> None:
    def loss(model: nn.Module, x: Tensor) -> Any:
        value = model(x).square().mean().sqrt()
        returned = {"dict": {"loss": value}, "list": [value], "float": value.item()}
        return returned.get(what, (value, model(x)))

    torch.manual_seed(0)
    with pytest.raises(rb.SettingError, match="the loss is no tensor") as error:
        rb.coupling.leaks(nn.Linear(3, 2), torch.randn(ROWS, 3), loss=loss)
    assert error.value.seen == f"a {what}"


def test_a_loss_with_a_gradient_inside() -> None:
    def penalty(model: nn.Module, x: Tensor) -> Tensor:
        x.requires_grad_()
        (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        return (slope.norm(dim=1) - 1).square().mean()

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    assert not rb.coupling.leaks(model, torch.randn(ROWS, 3), loss=penalty)
    model.insert(1, nn.BatchNorm1d(4))
    assert rb.coupling.leaks(model, torch.randn(ROWS, 3), loss=penalty)


def test_one_bug_in_a_layer_and_in_its_fast_path_is_one_leak() -> None:
    def fast(m: Any, x: Tensor) -> Tensor:
        return m.inner(x) if m.training else x.softmax(0)

    torch.manual_seed(0)
    model = nn.Sequential(Apply(fast, inner=nn.Softmax(0)))
    (leak,) = rb.coupling.leaks(model, torch.randn(ROWS, 3))
    assert (leak.module, leak.modes) == ("0.inner", BOTH)


def test_one_kind_of_change_that_raises_is_set_aside() -> None:
    def bounded(_: nn.Module, x: Tensor) -> Tensor:
        if x.min() < 0 or x.max() > 1:
            raise ValueError("give colours between 0 and 1")
        return x

    def centred(_: nn.Module, x: Tensor) -> Tensor:
        return bounded(_, x) - x.mean(0)

    assert rb.coupling.leaks(Apply(centred), torch.rand(ROWS, 3))
    clean = rb.coupling.leaks(Apply(bounded), torch.rand(ROWS, 3))
    assert len(clean.set_aside) == 2
    assert "not tried: noise: the model raised ValueError" in str(clean)


def test_random_numbers_of_other_shapes_are_no_leak() -> None:
    def drawn(self: Any, x: Tensor) -> Tensor:
        chosen = x[:, 0] > 0
        out = x.clone()
        out[chosen] = F.dropout(x[chosen], 0.5, self.training)
        return out

    torch.manual_seed(0)
    with pytest.raises(rb.SettingError, match="draws other random numbers"):
        rb.coupling.leaks(Apply(drawn), torch.randn(ROWS, 3))


def test_experts_that_take_all_are_clean_at_any_width() -> None:
    for seed in SEEDS:
        torch.manual_seed(seed)
        leaks = rb.coupling.leaks(Experts(64), torch.randn(64, WIDTH))
        assert not leaks
