"""The accumulator on one process: exact gradients, memory survived, bad input."""

from __future__ import annotations

import math
import random
import warnings
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import rightbatch as rb
from accumulation_ranks import Faults, Tagger, loss, make_model
from reference import whole_gradient
from rightbatch.training.accumulator import NotFiniteError, UpdateOutOfMemoryError
from rightbatch.training.recovery import MicroBatchSize
from stepping import stepping


def masked(count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randint(11, (count, 6), generator=generator) for _ in range(2))
    y[torch.rand(y.shape, generator=generator) < 0.7] = -1
    y[0, 0] = 3
    return x, y


def gradient(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten().double() for p in model.parameters()])  # pyrefly: ignore


@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 23), micro=st.integers(1, 25), seed=st.integers(0, 1000))
def test_any_split_gives_the_gradient_of_the_whole(
    count: int, micro: int, seed: int
) -> None:
    x, y = masked(count, seed)
    model = make_model()
    step = stepping(model, loss, micro, check=False, lr=0.0)
    update = step((x, y))
    truth = whole_gradient(
        make_model(), loss, [(x[i : i + 1], y[i : i + 1]) for i in range(count)]
    )
    error = (gradient(model) - truth).norm() / truth.norm()
    assert error <= 1e-6
    assert update.micro_batches == math.ceil(count / micro)
    assert update.count == int((y >= 0).sum())


def mean_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return (model(batch[0]) - batch[1]).square().mean()


def regression(seed: int = 0, count: int = 17) -> tuple[nn.Module, Any]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    x = torch.randn(count, 3)
    return model, (x, x.sum(1, keepdim=True))


def test_a_mean_loss_is_weighted_by_examples() -> None:
    model, batch = regression()
    whole = torch.autograd.grad(mean_loss(model, batch), list(model.parameters()))
    step = stepping(model, mean_loss, 4, lr=0.0)
    update = step(batch)
    assert update.count == 17
    for p, g in zip(model.parameters(), whole, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-5, atol=1e-7)
    assert step.equality is not None
    assert step.equality.equal


def test_a_batch_that_cannot_be_cut_is_refused_with_a_way_out() -> None:
    model, (x, y) = regression()
    step = stepping(model, mean_loss, 4, lr=0.0)
    with pytest.raises(rb.JobError, match="cannot be split") as caught:
        step((x, y[:5]))
    assert "split=" in str(caught.value)


def test_a_piece_without_targets_adds_nothing() -> None:
    """Its loss may be a plain zero; a batch without any target is refused."""
    x, y = torch.randn(16, 3), torch.arange(16) % 2
    y[4:8] = -1

    def partly(model: nn.Module, batch: Any) -> tuple[Tensor, Any]:
        keep = batch[1] >= 0
        if not keep.any():
            return torch.tensor(0.0), 0
        kept = F.cross_entropy(model(batch[0][keep]), batch[1][keep], reduction="sum")
        return kept, keep.sum()

    model = nn.Linear(3, 2)
    whole = stepping(model, partly, lr=0.0)((x, y))
    pieces = stepping(model, partly, micro_batch=4, lr=0.0)((x, y))
    assert pieces.count == whole.count == 12
    assert pieces.grad_norm == pytest.approx(whole.grad_norm, rel=1e-5)
    with pytest.raises(rb.JobError, match="count"):
        stepping(model, partly, micro_batch=4, lr=0.0)((x, torch.full_like(y, -1)))


def test_clipping_is_of_the_whole() -> None:
    model, batch = regression()
    step = stepping(model, mean_loss, 4, clip_norm=0.01, lr=0.0)
    update = step(batch)
    assert update.grad_norm > 0.01
    assert gradient(model).norm() == pytest.approx(0.01, rel=1e-4)


def test_float16_with_a_scaler_steps_like_float32() -> None:
    """Sums over thousands of targets would overflow without counting first."""
    x, y = torch.randint(11, (64, 100)), torch.randint(11, (64, 100))
    norms = []
    for precision in ("float32", "float16"):
        model = make_model()
        half = precision == "float16"
        scaler = torch.amp.GradScaler("cpu") if half else None
        step = stepping(model, loss, 8, precision=precision, scaler=scaler, check=False)
        updates = [step((x, y)) for _ in range(3)]
        assert all(u.applied for u in updates)
        norms.append([u.grad_norm for u in updates])
    np.testing.assert_allclose(norms[1], norms[0], rtol=0.02)


def test_batch_norm_statistics_move_as_for_the_whole() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 3) * torch.tensor([1.0, 2.0, 3.0]) + 5
    moved = []
    for micro in (64, 8):
        model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1))
        step = stepping(
            model, lambda m, b: m(b[0]).square().mean(), micro, check=False, lr=0.0
        )
        step((x, x))
        assert model[0].momentum == 0.1
        moved.append(model.state_dict()["0.running_mean"].clone())
    # Means of eighths of the batch differ; uncorrected they would move 5.7 x as far.
    torch.testing.assert_close(moved[0], moved[1], rtol=0.05, atol=0.02)


# Memory that runs out


class Blows(nn.Module):
    """Runs out of memory with more examples than fit; has state that passes change."""

    def __init__(self, fits: int, phase: str = "forward") -> None:
        super().__init__()
        self.fits, self.phase = fits, phase
        self.norm = nn.BatchNorm1d(3, affine=False)
        self.inner = nn.Linear(3, 1)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.norm(x)
        self.calls += 1
        random.random()
        np.random.rand()
        y = self.inner(x + 0 * torch.rand(()))
        if len(x) > self.fits:
            if self.phase == "forward":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
            y.register_hook(self._fail)
        return y

    def _fail(self, gradient: Tensor) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")


@pytest.mark.parametrize("phase", ["forward", "backward"])
def test_the_same_batch_is_made_again_in_smaller_pieces(phase: str) -> None:
    runs = []
    for fits, micro in ((5, None), (100, 5)):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        model = Blows(fits, phase)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        step = rb.Accumulator(
            model, mean_loss, optimizer, micro, check=False, tell=lambda text: None
        )
        x = torch.randn(20, 3)
        updates = [step((x, x.sum(1, keepdim=True))) for _ in range(4)]
        runs.append((model, updates, optimizer, (random.random(), np.random.rand())))
    (tried, first, adam, numbers), (planned, second, _, others) = runs
    assert first[0].retries == 2  # 20 -> 10 -> 5: pieces are doubled the second time
    assert [u.retries for u in first[1:]] == [0, 0, 0]
    assert [u.loss for u in first] == pytest.approx([u.loss for u in second], rel=1e-6)
    for p, q in zip(tried.parameters(), planned.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)
    for b, c in zip(tried.buffers(), planned.buffers(), strict=True):
        torch.testing.assert_close(b, c)
    assert numbers == others  # as if the failed passes had never drawn any
    assert {int(s["step"]) for s in adam.state.values()} == {4}


def test_the_planned_micro_batch_is_tried_again_after_a_hundred_quiet_steps() -> None:
    pieces = MicroBatchSize(most=64, now=64)
    assert [pieces.shrink(64), pieces.shrink(64)] == [32, 16]
    for _ in range(2):
        assert [pieces.calm() for _ in range(100)] == [False] * 99 + [True]
        assert pieces.now == 64
        assert pieces.shrink(64) == 32


def test_a_memory_law_says_where_to_go() -> None:
    model = Blows(5)
    step = stepping(
        model, mean_loss, fits=lambda failed: 5, check=False, tell=lambda text: None
    )
    update = step((torch.randn(20, 3), torch.randn(20, 1)))
    assert (update.retries, update.micro_batches) == (1, 4)


def test_not_even_one_example_is_told() -> None:
    model = Blows(0)
    step = stepping(model, mean_loss, check=False, tell=lambda text: None)
    model.norm.eval()
    with pytest.raises(rb.JobError, match="not even one example"):
        step((torch.randn(20, 3), torch.randn(20, 1)))


def test_memory_inside_the_update_is_not_tried_again() -> None:
    model, batch = regression()

    class Greedy(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory")

    step = rb.Accumulator(model, mean_loss, Greedy(model.parameters(), lr=0.1), 4)
    with pytest.raises(UpdateOutOfMemoryError, match="inside optimizer"):
        step(batch)


# Bad input


def test_a_loss_that_is_not_finite_stops_before_the_update() -> None:
    model, (x, y) = regression()
    before = [p.clone() for p in model.parameters()]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    step = rb.Accumulator(model, mean_loss, optimizer, 4, check=False)
    x[3] = math.nan
    with pytest.raises(NotFiniteError, match="became nan"):
        step((x, y))
    for p, q in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, q)
    assert not optimizer.state


def test_or_is_skipped_and_counted() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1))
    step = rb.Accumulator(
        model,
        mean_loss,
        torch.optim.Adam(model.parameters(), lr=0.1),
        8,
        nonfinite="skip",
        check=False,
    )
    x, y = torch.randn(16, 3), torch.randn(16, 1)
    assert step((x, y)).applied
    before = {k: v.clone() for k, v in model.state_dict().items()}
    bad = x.clone()
    bad[2] = math.inf
    assert not step((bad, y)).applied
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])  # statistics are not poisoned
    assert step((x, y)).applied
    assert step.skipped == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"micro_batch": 0},
        {"micro_batch": 2.5},
        {"precision": "float8"},
        {"precision": "float16"},
        {"clip_norm": -1.0},
        {"nonfinite": "ignore"},
    ],
)
def test_bad_settings_are_refused(wrong: dict[str, Any]) -> None:
    model, _ = regression()
    with pytest.raises(rb.SettingError):
        stepping(model, mean_loss, **wrong)


def test_a_loss_without_a_gradient_or_a_count_is_refused() -> None:
    model, batch = regression()
    with pytest.raises(rb.JobError, match="does not depend"):
        stepping(model, lambda m, b: m(b[0]).detach().mean())(batch)
    with pytest.raises(rb.JobError, match="the loss count is 0"):
        stepping(model, lambda m, b: (m(b[0]).sum() * 0, 0 * b[0].sum()))(batch)
    with pytest.raises(rb.JobError, match="not a scalar"):
        stepping(model, lambda m, b: m(b[0]))(batch)


def test_the_steps_of_a_stream_are_taken_whole() -> None:
    model, _ = regression()
    x = torch.randn(50, 3)
    stream = rb.BatchStream((x, x.sum(1, keepdim=True)), 20, micro_batch=6, seed=1)
    step = stepping(model, mean_loss, 4, check=False, lr=0.0)
    counts = []
    for one in stream.steps():
        update = step(one)
        counts.append(update.count)
        assert update.applied
    assert counts == [20, 20, 10]
    assert stream.epoch == 1


def test_faults_in_every_pass_of_a_run_change_nothing() -> None:
    """A fault in each forward and each backward pass in turn; 1e-6 on the end."""

    def train(phase: str, number: int) -> Tensor:
        model = make_model()
        step = rb.Accumulator(
            model,
            loss,
            torch.optim.AdamW(model.parameters(), lr=0.01),
            4,
            check=False,
            tell=lambda text: None,
        )
        Faults(model, phase, [number])
        for seed in range(2):
            step(masked(10, seed))
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    clean = train("none", 0)
    assert isinstance(make_model(), Tagger)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for phase in ("forward", "backward"):
            for number in range(1, 7):
                faulty = train(phase, number)
                assert (faulty - clean).norm() <= 1e-6 * clean.norm()
