"""What the corpus of bugs does not reach: thresholds, severities, numbers."""

from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    IterableDataset,
    TensorDataset,
)

import rightbatch as rb
from cases import regression_job
from rightbatch.core.findings import Finding
from rightbatch.lint.comparisons import in_pieces
from rightbatch.lint.probe import Probe
from rightbatch.lint.setup import Setup
from rightbatch.lint.touching_rules import _copies


def normalised() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))


def job(**more: Any) -> rb.Job:
    given: dict[str, Any] = {"model": normalised, **more}
    return regression_job(**given)


def found(code: str, *given: Any, **more: Any) -> Finding | None:
    return next((f for f in rb.check(*given, select=[code], **more).items), None)


@pytest.mark.parametrize(
    ("examples", "ranks", "left"), [(257, 1, 1), (258, 1, None), (258, 2, 1)]
)
def test_without_a_loader_a_last_batch_of_one_is_a_note(
    examples: int, ranks: int, left: int | None
) -> None:
    finding = found("RB301", job(examples=examples, batch_size=16 * ranks), ranks=ranks)
    assert (finding is None) == (left is None)
    if finding is not None:
        assert finding.severity == "note"
        assert f"ends with {left} " in finding.seen


def test_the_last_batch_is_that_of_every_rank() -> None:
    """66 examples over two ranks: 33 each, two batches of 16 and one of one."""
    data = TensorDataset(torch.randn(66, 5), torch.randn(66, 1))
    sampler = DistributedSampler(data, num_replicas=2, rank=0)
    loader = DataLoader(data, batch_size=16, sampler=sampler)
    finding = found("RB301", job(), loader=loader, ranks=2)
    assert finding is not None
    assert finding.severity == "error"
    whole = DataLoader(data, batch_size=11, sampler=sampler)
    assert found("RB301", job(), loader=whole, ranks=2) is None


def test_a_loader_without_indices_is_silent() -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter([])

    loader = DataLoader(Stream(), batch_size=16)
    assert found("RB301", job(examples=257), loader=loader) is None


@pytest.mark.parametrize(("micro", "few"), [(4, True), (7, True), (8, False)])
def test_few_examples_per_statistic(micro: int, few: bool) -> None:
    assert (found("RB302", job(), micro_batch=micro) is not None) == few


def test_ranks_that_share_statistics_count_together() -> None:
    def shared() -> nn.Module:
        return nn.SyncBatchNorm.convert_sync_batchnorm(normalised())

    assert found("RB302", job(model=shared), micro_batch=4, ranks=4) is None
    assert found("RB302", job(model=shared), micro_batch=4) is not None


@pytest.mark.parametrize(("micro", "severity"), [(8, "warning"), (16, "note")])
def test_enough_examples_on_a_rank_are_a_note(micro: int, severity: str) -> None:
    finding = found("RB304", job(), micro_batch=micro, ranks=2)
    assert finding is not None
    assert finding.severity == severity


def in_batch(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    logits = model(batch[0]) @ model(batch[0]).T
    return cross_entropy(logits, torch.arange(len(logits)))


@pytest.mark.parametrize(("ranks", "severity"), [(1, "note"), (2, "warning")])
def test_parts_with_statistics_of_their_own_are_a_warning(
    ranks: int, severity: str
) -> None:
    finding = found("RB305", job(loss=in_batch), ranks=ranks)
    assert finding is not None
    assert finding.severity == severity


def test_a_leak_in_the_model_is_no_contrastive_loss() -> None:
    class Softmax(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.softmax(0)

    leaking = job(model=lambda: nn.Sequential(Softmax(), nn.Linear(5, 1)))
    probe = Probe(leaking)
    assert probe.coupled == "loss"
    assert not probe.contrastive
    assert Probe(job(loss=in_batch)).contrastive


def rmse(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return (model(batch[0]) - batch[1]).square().mean().sqrt()


def norm(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return (model(batch[0]) - batch[1]).norm()


def decorrelated(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Barlow Twins."""
    z = model(batch[0] + batch[1])
    z = (z - z.mean(0)) / (z.std(0) + 1e-5)
    return (z.T @ z / len(z) - torch.eye(z.shape[1])).square().sum()


def pairs_of_all(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    made = model(batch[0])
    return rb.coupling.siglip(made, model(batch[0] + batch[1]), scale=1.0, bias=-10.0)


@pytest.mark.parametrize(
    ("loss", "contrastive"),
    [
        *((loss, False) for loss in (rmse, norm, decorrelated)),
        (in_batch, True),
        (pairs_of_all, True),
    ],
)
def test_what_holds_examples_apart_is_contrastive(loss: Any, contrastive: bool) -> None:
    probe = Probe(job(loss=loss, model=lambda: nn.Linear(5, 3)))
    assert probe.loss_couples
    assert probe.contrastive == contrastive


def test_a_root_of_a_mean_has_no_negatives() -> None:
    copies = torch.randn(4, 5).repeat(16, 1)
    given = job(loss=rmse, data=(copies, torch.randn(64, 1)))
    assert found("RB305", given) is None
    assert found("RB310", given) is None
    finding = found("RB309", given, accumulation=4)
    assert finding is not None
    assert "no mean over examples" in finding.what
    assert "negatives" not in str(finding)


@pytest.mark.parametrize("axis", [7, 1])
def test_a_search_that_cannot_be_made_is_told(axis: int) -> None:
    """No such axis in the data; or outputs without it."""
    finding = found("RB307", job(loss=in_scalars), time_axis=axis)
    assert finding is not None
    assert finding.severity == "note"
    assert finding.what.startswith("not checked: ")
    assert finding.fix


def in_scalars(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return model(batch[0]).square().mean()


def test_a_search_over_ranks_that_fails_is_told() -> None:
    class Refuses(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if torch.distributed.is_initialized():
                raise ValueError("not here")
            return x

    given = job(model=lambda: nn.Sequential(nn.Linear(5, 1), Refuses()))
    finding = found("RB308", given, ranks=2)
    assert finding is not None
    assert (finding.severity, finding.what[:12]) == ("note", "not checked:")


def test_modes_are_those_of_all_leaks_of_a_kind() -> None:
    class AheadIn(nn.Module):
        def __init__(self, *, training: bool) -> None:
            super().__init__()
            self.wanted = training

        def forward(self, x: Tensor) -> Tensor:
            return x + x.flip(1) if self.training == self.wanted else x

    data = torch.randn(64, 6)

    def made() -> nn.Module:
        both = AheadIn(training=True), AheadIn(training=False)
        return nn.Sequential(*both, nn.BatchNorm1d(6))

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return model(batch).square().mean()

    finding = found("RB307", job(model=made, data=data, loss=loss), time_axis=1)
    assert finding is not None
    assert "in train and eval mode" in finding.seen


def test_groups_of_their_own_are_the_same_on_every_rank() -> None:
    def ghost() -> nn.Module:
        norm = rb.coupling.GhostBatchNorm(8, group=8)
        return nn.Sequential(nn.Linear(5, 8), norm, nn.Linear(8, 1))

    assert found("RB304", job(model=ghost), ranks=2) is None


def test_one_batch_of_a_loop_has_no_last_batch() -> None:
    given: dict[str, Any] = {"model": normalised(), "batch": torch.randn(17, 5)}
    given["loss"] = in_one
    assert found("RB301", **given, accumulation=2) is None


def in_one(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).square().mean()


def test_rows_of_one_example_are_one_example() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(1)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x.reshape(-1, 1)).view_as(x).mean(1, keepdim=True)

    given = job(model=lambda: nn.Sequential(nn.Linear(5, 40), Tokens()))
    finding = found("RB302", given, micro_batch=2)
    assert finding is not None
    assert finding.seen == "80 values per channel, of 2 examples"
    assert "of the others" not in finding.why


def test_pieces_are_compared_with_the_gradient_by_autograd() -> None:
    """Weights and data of seed 0; float32 against float64: to 1e-4."""
    chosen = job(batch_size=32)
    measured = in_pieces(Probe(chosen, setup=Setup(accumulation=2)))
    assert measured is not None
    model = chosen.make_model().double()
    x, y = (t[:32].double() for t in chosen.data)

    def gradient(*pieces: slice) -> Tensor:
        losses: list[Any] = [chosen.loss(model, (x[p], y[p])) for p in pieces]
        mean = torch.stack(losses).mean()
        made = torch.autograd.grad(mean, list(model.parameters()))
        return torch.cat([g.flatten() for g in made])

    whole, cut = gradient(slice(32)), gradient(slice(16), slice(16, 32))
    share = float((cut - whole).norm() / whole.norm())
    assert share > 0.01
    assert measured[2].share == pytest.approx(share, rel=1e-4)


def test_copies_are_counted_pair_by_pair() -> None:
    """Fields: inputs with copies, classes, a mask, positions, more inputs, labels."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(3, (40, 2), generator=generator)
    floats = inputs.double()[:, :1] * torch.ones(3)
    mask = torch.ones(40, 4, dtype=torch.bool)
    classes = one_hot(inputs[:, 0]).float()
    batch = inputs, classes, mask, torch.arange(4).repeat(40, 1), floats, inputs[:, 0]

    def pairs(rows: Tensor) -> int:
        return sum(torch.equal(a, b) for a, b in combinations(rows, 2))

    assert _copies(batch) == [pairs(inputs), 0, 0, 0, pairs(floats), 0]
    assert pairs(floats) > pairs(inputs) > 0


class Dropping(nn.Module):
    """Functional dropout before a BatchNorm: no layer stands still for it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.last = nn.BatchNorm1d(5), nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(nn.functional.dropout(x, 0.3, self.training)))


def views(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """InfoNCE, gathered as it should be, of two views that the loss draws."""
    x = batch[0]
    first, second = (model(x + 0.1 * torch.randn_like(x)) for _ in range(2))
    return rb.coupling.info_nce(first, second, scale=1.0)


def test_what_is_drawn_in_a_pass_is_no_difference_of_pieces() -> None:
    """Each of these differed by what was drawn, and was reported."""
    assert found("RB303", job(model=Dropping), accumulation=2) is None
    assert found("RB309", job(loss=views), accumulation=2) is None
    assert found("RB309", job(loss=views), ranks=2) is None


def test_halves_round_more() -> None:
    """The right gather in bfloat16: its gradients differ by some 4e-3 [measured]."""

    def gathered(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return rb.coupling.info_nce(model(batch[0]), model(-batch[0]), scale=1.0)

    right = job(loss=gathered, precision="bfloat16")
    assert found("RB309", right, ranks=2) is None
    assert found("RB309", right, accumulation=2) is not None
