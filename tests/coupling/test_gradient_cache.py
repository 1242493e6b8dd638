"""A step in chunks against the whole batch at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import normalize

import rightbatch as rb
from rightbatch.coupling.chunks import chunks_of_tokens

COUNT, WIDTH = 30, 10


def encoder(*layers: nn.Module) -> nn.Sequential:
    """The same each time, with something in its middle."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, 20), *layers, nn.Tanh(), nn.Linear(20, 8))


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    one, other = torch.randn(2, COUNT, WIDTH, generator=generator)
    return one, one + other


SCALE = nn.Parameter(torch.tensor(2.0))


@pytest.fixture(autouse=True)
def _no_gradient_left() -> None:
    SCALE.grad = None


def loss(one: Tensor, other: Tensor) -> Tensor:
    one, other = normalize(one, dim=1), normalize(other, dim=1)
    return rb.coupling.info_nce(one, other, scale=SCALE.exp())


def gradient(*modules: nn.Module) -> Tensor:
    """Taken off, that of the loss's scale last."""
    trained = [*(p for m in modules for p in m.parameters()), SCALE]
    flat = torch.cat([p.grad.flatten() for p in trained if p.grad is not None])
    for parameter in trained:
        parameter.grad = None
    return flat.double()


def error(found: Tensor, true: Tensor) -> float:
    return float((found - true).norm() / true.norm())


def at_once(first: nn.Module, second: nn.Module, batch: Any = None) -> Tensor:
    one, other = inputs() if batch is None else batch
    value = loss(first(one), second(other))
    value.backward()
    return value.detach()


@pytest.mark.parametrize("micro_batch", [1, 7, COUNT, 100])
@pytest.mark.parametrize("towers", [1, 2])
def test_chunks_have_the_gradient_of_the_whole(micro_batch: int, towers: int) -> None:
    """The scale's too. One tower or two; float32 leaves 1e-6."""
    first = encoder(nn.LayerNorm(20))
    second = first if towers == 1 else encoder(nn.GroupNorm(4, 20))
    parts = list(zip((first, second), inputs(), strict=True))
    value = rb.coupling.cached_step(parts, loss, micro_batch=micro_batch)
    found = gradient(first, second)
    true = at_once(first, second)
    assert error(found, gradient(first, second)) <= 1e-6
    assert float(value) == pytest.approx(float(true), rel=1e-6)
    assert not value.requires_grad


def test_gradients_are_added() -> None:
    network = encoder()
    parts = [(network, batch) for batch in inputs()]
    rb.coupling.cached_step(parts, loss, micro_batch=8)
    rb.coupling.cached_step(parts, loss, micro_batch=8)
    twice = gradient(network)
    rb.coupling.cached_step(parts, loss, micro_batch=8)
    assert error(twice, 2 * gradient(network)) <= 1e-6


def test_dropout_is_the_same_in_both_passes() -> None:
    """Against chunks encoded once, with a graph, from the same random state."""
    network = encoder(nn.Dropout(0.3))
    one, other = inputs()
    torch.manual_seed(5)
    rb.coupling.cached_step([(network, one), (network, other)], loss, micro_batch=10)
    found, after = gradient(network), torch.rand(())
    torch.manual_seed(5)
    features = [torch.cat([network(c) for c in x.split(10)]) for x in (one, other)]
    loss(*features).backward()
    assert error(found, gradient(network)) <= 1e-6
    assert after == torch.rand(())  # random numbers go on as after one pass


def test_autocast_holds_for_encoders() -> None:
    """Weights cast in the pass without a graph must not be reused in the other."""
    network = encoder(nn.LayerNorm(20))
    parts = [(network, batch) for batch in inputs()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rb.coupling.cached_step(parts, loss, micro_batch=COUNT)
    found = gradient(network)
    assert len(found) == sum(p.numel() for p in network.parameters()) + 1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        one, other = inputs()
        value = loss(network(one), network(other))
    value.backward()
    bfloat16 = gradient(network)
    at_once(network, network)
    assert error(found, bfloat16) <= 0.004  # sums in bfloat16
    assert error(found, gradient(network)) > 0.004  # it was on


class Sequences(nn.Module):
    """A mean over the positions that are no padding, after a mix over positions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.widths = nn.Embedding(50, 8), []
        self.mix = nn.GRU(8, 8, batch_first=True)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        self.widths.append(tuple(batch["ids"].shape))
        hidden, _ = self.mix(self.table(batch["ids"]))
        kept = batch["mask"][:, :, None]
        return (hidden * kept).sum(1) / kept.sum(1)


def texts(lengths: list[int]) -> dict[str, Tensor]:
    longest = max(lengths)
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    ids = torch.randint(50, mask.shape, generator=torch.Generator().manual_seed(2))
    return {"ids": ids * mask, "mask": mask}


def test_a_budget_of_tokens_has_the_gradient_of_the_whole() -> None:
    network = Sequences()
    lengths = [1 + 7 * i % 16 for i in range(COUNT)]
    batch, images = texts(lengths), inputs()[0]
    vision = encoder()
    rb.coupling.cached_step(
        [(vision, images), (network, batch)],
        loss,
        micro_batch=9,
        tokens=40,
        lengths=[None, torch.tensor(lengths)],
    )
    assert len(network.widths) > 2
    assert all(rows * width <= 40 for rows, width in network.widths)
    found = gradient(vision, network)
    at_once(vision, network, (images, batch))
    assert error(found, gradient(vision, network)) <= 1e-6


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=40),
    tokens=st.integers(1, 60),
)
def test_chunks_hold_every_example_once_within_the_budget(
    lengths: list[int], tokens: int
) -> None:
    batch = texts(lengths)
    chunks = chunks_of_tokens(batch, lengths, tokens)
    assert sorted(i for c in chunks for i in c.indices) == list(range(len(lengths)))
    for chunk in chunks:
        rows, width = chunk.batch["ids"].shape
        assert width == max(lengths[i] for i in chunk.indices)
        assert rows * width <= tokens or rows == 1
        for row, index in enumerate(chunk.indices):
            kept = batch["ids"][index, : lengths[index]]
            assert torch.equal(chunk.batch["ids"][row, : lengths[index]], kept)


class Counting(nn.Module):
    """Moves a buffer in each pass."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        return x * self.passes


class Remembering(nn.Module):
    """The same, in no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        return x * self.passes


class Centred(nn.Module):
    """Takes the mean of the batch away: no BatchNorm."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


class Own(nn.Module):
    """Drops values by a generator of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (torch.rand(x.shape, generator=OWN) > 0.5)


OWN = torch.Generator()


@pytest.mark.parametrize(
    ("layer", "match"),
    [
        (lambda: nn.BatchNorm1d(20), "touch each other"),
        (lambda: nn.BatchNorm1d(20, track_running_stats=False), "touch each other"),
        (Counting, "changes a buffer"),
        (Remembering, "other features"),
        (Own, "other features"),
        (Centred, "examples of a chunk touch"),
    ],
)
def test_what_makes_the_gradient_wrong_is_refused(
    layer: Callable[[], nn.Module], match: str
) -> None:
    network = encoder(layer())
    before = {name: b.clone() for name, b in network.named_buffers()}
    with pytest.raises(rb.JobError, match=match) as caught:
        rb.coupling.cached_step(
            [(network, batch) for batch in inputs()], loss, micro_batch=8
        )
    assert caught.value.fix
    for name, buffer in network.named_buffers():
        assert torch.equal(buffer, before[name])


@pytest.mark.parametrize(("layer", "match"), [(Own, "other"), (Centred, "touch")])
def test_every_part_is_tried(layer: Callable[[], nn.Module], match: str) -> None:
    towers = encoder(), encoder(layer())
    parts = list(zip(towers, inputs(), strict=True))
    with pytest.raises(rb.JobError, match=match):
        rb.coupling.cached_step(parts, loss, micro_batch=8)


@pytest.mark.parametrize("function", [False, True])
def test_a_frozen_tower_is_encoded_once(function: bool) -> None:
    """A module, or a function that calls a frozen part of the model."""
    towers = nn.ModuleList([encoder().requires_grad_(False), encoder()])
    calls: list[int] = []
    towers[0].register_forward_hook(lambda *call: calls.append(1))
    first: Any = (lambda x: towers[0](x)) if function else towers[0]
    parts = list(zip((first, towers[1]), inputs(), strict=True))
    rb.coupling.cached_step(parts, loss, micro_batch=10, model=towers)
    assert function or len(calls) == 3
    found = gradient(*towers)
    at_once(*towers)
    assert error(found, gradient(*towers)) <= 1e-6


@pytest.mark.parametrize(
    ("loss", "seen"),
    [
        (lambda a, b: ((a * b).sum(), 30), "tuple"),
        (lambda a, b: (a * b).sum(1), "shape (30,)"),
        (lambda a, b: (a * b).sum().detach(), "requires_grad=False"),
    ],
)
def test_what_is_no_loss_is_refused(loss: Any, seen: str) -> None:
    parts = [(encoder(), batch) for batch in inputs()]
    with pytest.raises(rb.JobError, match="one number with a gradient") as caught:
        rb.coupling.cached_step(parts, loss, micro_batch=8)
    assert seen in caught.value.seen


def test_frozen_batch_norm_is_right() -> None:
    network = encoder(nn.BatchNorm1d(20))
    network(inputs()[0])
    network.eval()
    parts = [(network, batch) for batch in inputs()]
    rb.coupling.cached_step(parts, loss, micro_batch=8)
    found = gradient(network)
    at_once(network, network)
    assert error(found, gradient(network)) <= 1e-6


def test_arguments_that_make_no_sense_are_refused() -> None:
    network, (one, other) = encoder(), inputs()
    parts = [(network, one), (network, other)]
    step = rb.coupling.cached_step
    with pytest.raises(rb.SettingError, match="size of a chunk is missing"):
        step(parts, loss)
    with pytest.raises(rb.SettingError, match="size of a chunk is missing"):
        step(parts, loss, micro_batch=8, lengths=[[1] * COUNT, None])
    with pytest.raises(rb.SettingError, match="an entry for each part"):
        step(parts, loss, tokens=8, lengths=[[1] * COUNT])
    with pytest.raises(rb.SettingError, match="lengths and batch do not fit"):
        step(parts, loss, tokens=8, lengths=[[WIDTH + 1] * COUNT] * 2)
    with pytest.raises(rb.SettingError, match="its model is not known"):
        step([(lambda x: network(x), one), (network, other)], loss, micro_batch=8)
    with pytest.raises(rb.JobError, match="an encoder raised TypeError"):
        step([(network, one.tolist()), (network, other)], loss, micro_batch=8)
    with pytest.raises(rb.JobError, match="a row for each example"):
        step([(nn.Flatten(0), one), (network, other)], loss, micro_batch=8)
