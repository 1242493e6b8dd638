"""What is looked at in the first batch is right, changes no run and ends none."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rightbatch as rb
from stepping import stepping

COUNT, WIDTH, CLASSES = 16, 4, 3


def examples() -> tuple[Tensor, Tensor]:
    """The first numbers of the first half are negative, of the second positive."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(COUNT, WIDTH, generator=generator)
    x[:, 0] = x[:, 0].abs() * torch.tensor([-1.0, 1.0]).repeat_interleave(COUNT // 2)
    return x, torch.randint(CLASSES, (COUNT,), generator=generator)


def mean(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def summed(model: nn.Module, batch: Any) -> Tensor:
    return mean(model, batch) * len(batch[1])


class Plain(nn.Module):
    """A layer, and what a subclass does beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(WIDTH, CLASSES)
        self.add()

    def add(self) -> None:
        """More state."""

    def see(self, x: Tensor) -> Tensor:
        """What the layer is given."""
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.see(x))


class Assigned(Plain):
    def add(self) -> None:
        self.register_buffer("mean", torch.zeros(WIDTH))

    def see(self, x: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
        return x - self.mean


class MadeLater(Plain):
    def add(self) -> None:
        self.register_buffer("shift", None)

    def see(self, x: Tensor) -> Tensor:
        if self.shift is None:
            self.shift = x.mean(0)
        return x - self.shift


class Counts(Plain):
    def add(self) -> None:
        self.calls = 0

    def see(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x / self.calls


class Remembers(Plain):
    def add(self) -> None:
        self.queue: deque[Tensor] = deque(maxlen=3)

    def see(self, x: Tensor) -> Tensor:
        self.queue.append(x.mean(0))
        return x - torch.stack(list(self.queue)).mean(0)


class Draws(Plain):
    def add(self) -> None:
        self.generator = torch.Generator().manual_seed(5)

    def see(self, x: Tensor) -> Tensor:
        return x + torch.randn(x.shape, generator=self.generator)


class Follows(Plain):
    """A teacher that follows by a running mean, in the forward pass."""

    def add(self) -> None:
        self.teacher = nn.Linear(WIDTH, CLASSES).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            for t, p in zip(
                self.teacher.parameters(), self.out.parameters(), strict=True
            ):
                t.data = 0.9 * t.data + 0.1 * p.data
        return self.out(x) - self.teacher(x)


class Decays(Plain):
    def see(self, x: Tensor) -> Tensor:
        self.out.weight.data.mul_(0.9)
        return x


class BuildsLater(Plain):
    def see(self, x: Tensor) -> Tensor:
        if not hasattr(self, "first"):
            self.first = nn.Linear(WIDTH, WIDTH)
        return self.first(x)


class Needs(Plain):
    """A layer that takes no fewer than so many examples, in any mode."""

    def see(self, x: Tensor) -> Tensor:
        if len(x) < 4:
            raise ValueError("too few examples")
        return x


class Divides(Plain):
    """By what is NaN for one example while training."""

    def see(self, x: Tensor) -> Tensor:
        return x / x.std(0) if self.training else x


class Sparse(nn.Module):
    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, CLASSES, sparse=True)
        self.tied = tied

    def forward(self, x: Tensor) -> Tensor:
        seen = self.embedding((x[:, 0] > 0).long())
        return seen @ self.embedding.weight[:CLASSES].T if self.tied else seen


def norm() -> nn.Module:
    return nn.Sequential(nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, CLASSES))


def masked(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    """The first half has no targets."""
    y = torch.where(batch[0][:, 0] > 0, batch[1], -100)
    total = F.cross_entropy(model(batch[0]), y, ignore_index=-100, reduction="sum")
    return total, (y >= 0).sum()


def partly_trained(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
    """Some pieces reach no weight that is trained."""
    losses = F.cross_entropy(model(batch[0]), batch[1], reduction="none")
    if (batch[0][:, 0] < 0).any():
        losses = losses.detach()
    return losses.sum(), len(losses)


LEGAL: dict[str, tuple[Callable[[], nn.Module], Any, int]] = {
    "assigned buffer": (Assigned, mean, 4),
    "buffer made later": (MadeLater, mean, 4),
    "counter": (Counts, mean, 4),
    "queue": (Remembers, mean, 4),
    "generator": (Draws, mean, 4),
    "teacher": (Follows, mean, 4),
    "weights written to": (Decays, mean, 4),
    "layer made later": (BuildsLater, mean, 4),
    "needs four": (Needs, mean, 4),
    "NaN for one": (Divides, mean, 3),
    "batch norm, three": (norm, mean, 3),
    "batch norm, two": (norm, mean, 2),
    "sparse": (Sparse, mean, 4),
    "sparse and dense": (lambda: Sparse(tied=True), mean, 4),
    "masked": (Plain, masked, 4),
    "not all pieces trained": (Plain, partly_trained, 1),
}


@pytest.mark.parametrize("kind", LEGAL)
@pytest.mark.filterwarnings("ignore:.*(split|micro-batches|in no optimizer)")
def test_a_run_is_bit_for_bit_as_without_the_comparison(kind: str) -> None:
    make, loss, micro = LEGAL[kind]
    ends = []
    for check in (True, False):
        torch.manual_seed(0)
        model = make()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        step = rb.Accumulator(model, loss, optimizer, micro, check=check)
        losses = [step(examples()).loss for _ in range(2)]
        state = {k: v.clone() for k, v in model.state_dict().items()}
        ends.append((losses, state, torch.get_rng_state()))
    (losses, state, drawn), (others, other, numbers) = ends
    assert losses == others
    assert state.keys() == other.keys()
    for name, value in state.items():
        assert torch.equal(value, other[name]), name
    assert torch.equal(drawn, numbers)


@pytest.mark.parametrize("micro", [1, 2, 3, 5, 11])
def test_never_are_more_examples_run_at_once(micro: int) -> None:
    sizes: list[int] = []
    model = nn.Linear(WIDTH, CLASSES)
    model.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    told: list[str] = []
    step = stepping(model, summed, micro, tell=told.append, lr=0.0)
    step(examples())
    assert max(sizes) <= micro
    assert (step.equality is None) == (micro == 1)
    if micro == 1:
        with pytest.raises(rb.JobError, match="two examples at once"):
            step.verify(examples())
    else:
        assert "the loss is a sum over examples" in told[0]


def test_examples_with_targets_are_looked_for() -> None:
    model = Plain()
    step = stepping(model, masked, 4)
    step(examples())
    assert step.equality is not None
    assert step.equality.equal
    x, y = examples()
    with pytest.raises(rb.JobError, match="cannot be compared"):
        step.verify((x[:8], y[:8]))


@pytest.mark.filterwarnings("error")
def test_one_that_fails_is_told_and_the_run_goes_on() -> None:
    model = Needs()
    told: list[str] = []
    step = stepping(model, mean, 4, tell=told.append)
    assert step(examples()).applied
    assert step(examples()).applied
    (text,) = told
    assert "were not compared" in text
    with pytest.raises(rb.JobError, match="raised ValueError"):
        step.verify(examples())


# What splitting changes


def distances(model: nn.Module, batch: Any) -> Tensor:
    """A mean over pairs: the same where every example is there twice."""
    z = model(batch[0])
    return (z[:, None] - z[None]).square().mean() + z.square().mean()


def weighted(model: nn.Module, batch: Any) -> Tensor:
    weight = torch.tensor([1.0, 5.0, 0.2])
    return F.cross_entropy(model(batch[0]), batch[1], weight=weight)


def contrastive(model: nn.Module, batch: Any) -> Tensor:
    z = F.normalize(model(batch[0]), dim=1)
    return F.cross_entropy(z @ z.T / 0.1, torch.arange(len(z)))


def noisy(model: nn.Module, batch: Any) -> Tensor:
    z = model(batch[0])
    return F.cross_entropy(z + torch.randn_like(z), batch[1])


def centered(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
    z = model(batch[0])
    return (z - z.mean(0)).square().sum(), len(z)


def dropout() -> nn.Module:
    return nn.Sequential(nn.Dropout(0.5), nn.Linear(WIDTH, CLASSES))


@pytest.mark.parametrize("micro", [8, 5])
@pytest.mark.parametrize(
    ("make", "loss", "cause"),
    [
        (norm, mean, "BatchNorm1d normalises each piece"),
        (dropout, mean, "dropout draws other numbers"),
        (Plain, summed, "is a sum over examples"),
        (Plain, lambda m, b: summed(m, b) / 64, "is a sum over examples"),
        (Plain, weighted, "something else than examples"),
        (Plain, contrastive, "contrastive"),
        (Plain, noisy, "random numbers"),
        (Plain, distances, "contrastive"),
    ],
)
def test_what_breaks_equality_is_named_and_nothing_is_changed(
    make: Any, loss: Any, cause: str, micro: int
) -> None:
    if loss is distances and micro < 8:
        return  # too few examples to tell it from a mean over something else
    torch.manual_seed(0)
    model, told = make(), list[str]()
    step = stepping(model, loss, micro, tell=told.append)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    drawn = torch.get_rng_state()
    equality = step.verify(examples())
    assert not equality.equal
    assert len(equality.causes) == 1
    assert cause in equality.causes[0]
    assert torch.equal(torch.get_rng_state(), drawn)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    step(examples())
    assert len(told) == 1
    assert cause in told[0]


def test_a_sum_that_depends_on_the_rest_of_its_batch() -> None:
    torch.manual_seed(0)
    model = Plain()
    equality = stepping(model, centered, 8).verify(examples())
    assert not equality.equal
    assert "contrastive" in equality.causes[0]
    equality = stepping(model, centered, 5).verify(examples())
    assert "depends on the rest of the batch" in equality.causes[0]


class Codebook(Plain):
    code: Tensor

    def add(self) -> None:
        self.register_buffer("code", torch.randn(2, WIDTH))

    def see(self, x: Tensor) -> Tensor:
        nearest = torch.cdist(x, self.code).argmin(1)
        self.code.mul_(0.9).add_(0.1 * x.mean(0))
        return x + self.code[nearest]


class Silent(Plain):
    """A running mean that the loss does not see."""

    mean: Tensor

    def add(self) -> None:
        self.register_buffer("mean", torch.zeros(WIDTH))

    def see(self, x: Tensor) -> Tensor:
        self.mean.lerp_(x.mean(0), 0.1)
        return x


class Steps(Plain):
    steps: Tensor

    def add(self) -> None:
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def see(self, x: Tensor) -> Tensor:
        self.steps += 1
        return x


class Tables(Plain):
    """Buffers that no piece moves further than the whole."""

    def add(self) -> None:
        self.register_buffer("table", torch.arange(3.0))
        self.register_buffer("largest", torch.zeros(()))
        self.norm = nn.InstanceNorm1d(1, track_running_stats=True)

    def see(self, x: Tensor) -> Tensor:
        self.table = torch.arange(5.0)
        self.largest = torch.maximum(self.largest, x.abs().max())
        self.norm(x[:, None])
        return x


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (Codebook, "code"),
        (Silent, "mean"),
        (Steps, "steps"),
        (Follows, "teacher.weight"),
        (Tables, ""),
    ],
)
def test_what_moves_with_every_piece_is_named(
    make: Callable[[], nn.Module], name: str
) -> None:
    torch.manual_seed(0)
    model = make()
    told: list[str] = []
    stepping(model, mean, 8, tell=told.append)(examples())
    assert len(told) == bool(name)
    if name:
        assert name in told[0]
        assert "once a step" in told[0]
        assert "dropout" not in told[0]


# Pairs that are no (sum, count)


def accuracy(model: nn.Module, batch: Any) -> Tensor:
    return (model(batch[0]).argmax(1) == batch[1]).float().mean()


@pytest.mark.parametrize("micro", [None, 4])
@pytest.mark.parametrize("number", [False, True])
def test_a_mean_with_a_metric_is_taken_as_a_mean(
    micro: int | None, number: bool
) -> None:
    torch.manual_seed(1)
    model = Plain()

    def pair(model: nn.Module, batch: Any) -> Any:
        right = accuracy(model, batch)
        return mean(model, batch), float(right) if number else right

    told: list[str] = []
    step = stepping(model, pair, micro, tell=told.append, lr=0.0)
    whole = torch.autograd.grad(mean(model, examples()), list(model.parameters()))
    for _ in range(2):
        update = step(examples())
        assert update.count == COUNT
        assert update.loss == pytest.approx(
            float(mean(model, examples()).detach()), rel=1e-5
        )
        for p, g in zip(model.parameters(), whole, strict=True):
            torch.testing.assert_close(p.grad, g, rtol=1e-5, atol=1e-7)
    (text,) = told
    assert "does not return (sum, count)" in text


def test_a_metric_that_is_zero_at_first_is_no_other_thing() -> None:
    """As accuracy is among many classes: the same answer as when some are right."""
    model, told = Plain(), list[str]()
    step = stepping(model, lambda m, b: (mean(m, b), 0.0), tell=told.append, lr=0.0)
    assert step(examples()).count == COUNT
    assert "does not return (sum, count)" in told[0]


def test_a_batch_that_tells_nothing_leaves_the_pair_to_the_next() -> None:
    model, told = Plain(), list[str]()
    step = stepping(model, lambda m, b: (mean(m, b), 0.25), tell=told.append, lr=0.0)
    whole = examples()
    step((whole[0][:1], whole[1][:1]))  # one example alone
    assert not told
    assert step(whole).count == COUNT
    assert len(told) == 1


@pytest.mark.parametrize("micro", [None, 4])
@pytest.mark.parametrize(
    ("pair", "where"),
    [
        (lambda m, b: (mean(m, b), len(b[1])), "sum"),
        (lambda m, b: (mean(m, b), accuracy(m, b) * len(b[1])), "sum"),
        (lambda m, b: (summed(m, b), accuracy(m, b)), "count"),
        (lambda m, b: (summed(m, b), 64), "count"),
    ],
)
def test_a_pair_that_is_half_a_sum_is_refused(
    pair: Any, where: str, micro: int | None
) -> None:
    torch.manual_seed(1)
    model = Plain()
    before = model.out.weight.detach().clone()
    step = stepping(model, pair, micro)
    with pytest.raises(rb.JobError, match=r"does not return \(sum, count\)") as refused:
        step(examples())
    assert f"a mean where the {where} should be" in refused.value.seen
    assert torch.equal(model.out.weight, before)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "pair",
    [
        lambda m, b: (summed(m, b), len(b[1])),
        lambda m, b: (
            F.cross_entropy(m(b[0]), b[1], torch.ones(CLASSES) / 7, reduction="sum"),
            (torch.ones(CLASSES) / 7)[b[1]].sum(),
        ),
        masked,
    ],
)
def test_a_sum_with_its_count_is_taken(pair: Any) -> None:
    model = Plain()
    step = stepping(model, pair, 4)
    total, count = pair(model, examples())
    assert step(examples()).loss == pytest.approx(
        float(total.detach() / count), rel=1e-5
    )


@pytest.mark.filterwarnings("error")
def test_a_mean_over_pairs_of_examples_is_taken_whole() -> None:
    def pairs(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
        z = model(batch[0])
        return (z[:, None] - z[None]).square().sum(), len(z) ** 2

    model = Plain()
    step = stepping(model, pairs, lr=0.0)
    total, count = pairs(model, examples())
    assert step(examples()).loss == pytest.approx(
        float(total.detach()) / count, rel=1e-5
    )


def test_a_batch_none_of_whose_pieces_is_trained_is_refused() -> None:
    model = Plain()
    x, y = examples()
    step = stepping(model, partly_trained, 1)
    with pytest.raises(rb.JobError, match="does not depend on the parameters"):
        step((-x.abs(), y))


def test_pieces_that_reach_no_weight_count_in_the_mean() -> None:
    model = Plain()
    x, y = examples()
    losses = F.cross_entropy(model(x), y, reduction="none")
    trained = torch.where(x[:, 0] < 0, losses.detach(), losses).mean()
    right = torch.autograd.grad(trained, list(model.parameters()))
    update = stepping(model, partly_trained, 1, lr=0.0)((x, y))
    assert update.loss == pytest.approx(float(losses.detach().mean()), rel=1e-5)
    for p, g in zip(model.parameters(), right, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-5, atol=1e-7)
