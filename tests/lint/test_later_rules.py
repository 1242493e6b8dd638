"""What the pairs of ``bugs/`` do not reach: thresholds, numbers, and silence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

import rightbatch as rb
from cases import regression_job
from made_runs import run_folder
from rightbatch.core.findings import Finding
from rightbatch.lint.averaging_rules import _off
from rightbatch.lint.machine_rules import _labels
from rightbatch.lint.probe import Probe
from rightbatch.lint.recipe_rules import _decay_of, _first_norms, _steps
from rightbatch.lint.setup import Setup


def found(code: str, job: rb.Job | None = None, **how: Any) -> Finding | None:
    """What one rule says of a job."""
    items = rb.check(job, select=[code], **how).items
    assert len(items) <= 1
    return items[0] if items else None


def weighted(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    weight = batch[1].abs()
    return (weight * (model(batch[0]) - batch[1]).square()).sum() / weight.sum()


def test_pieces_are_held_against_the_whole_batch() -> None:
    """Against gradients made one piece at a time, over the same examples."""
    job = regression_job(loss=weighted)
    probe = Probe(job)
    drawn = torch.randperm(job.length, generator=torch.Generator().manual_seed(0))[:12]

    def gradient(indices: Tensor) -> Tensor:
        model = job.make_model()
        weighted(model, (job.data[0][indices], job.data[1][indices])).backward()
        (weight,) = model.parameters()
        assert weight.grad is not None
        return weight.grad.flatten()

    whole = gradient(drawn)
    apart = torch.stack([gradient(piece) for piece in drawn.split(3)]).mean(0)
    off = float((apart - whole).norm() / whole.norm())
    assert _off(probe, 4, 3) == pytest.approx(off, rel=1e-4)
    assert off > 0.01
    assert all(p.grad is None for p in probe.model.parameters())


def test_a_piece_in_which_nothing_counts_is_told() -> None:
    """Six of ten examples count: one taken by itself may not."""
    counted = torch.rand(256, generator=torch.Generator().manual_seed(1)) < 0.6

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        inputs, targets, counts = batch
        each = (model(inputs) - targets).square()[:, 0]
        return (each * counts).sum() / counts.sum()

    data = (*regression_job().data, counted.float())
    told = found("RB401", regression_job(data=data, loss=loss), micro_batch=1)
    assert told is not None
    assert told.seen.startswith("pieces of 1: in one of them nothing counts")


def test_what_does_not_fit_at_once_is_not_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*args: Any) -> float:
        raise MemoryError

    monkeypatch.setattr("rightbatch.lint.averaging_rules._off", full)
    told = found("RB401", regression_job(loss=weighted), ranks=2)
    assert told is not None
    assert "not compared" in told.seen


def test_a_batch_made_at_once_has_no_pieces() -> None:
    assert found("RB401", regression_job(loss=weighted)) is None
    assert found("RB401", regression_job(loss=weighted), ranks=2) is not None
    assert found("RB401", regression_job(), ranks=2) is None


def test_a_batch_that_is_about_todays_is_no_other() -> None:
    """15 of 16 examples, where three ranks share them."""
    assert found("RB501", regression_job(), ranks=3) is None
    assert found("RB501", regression_job(), micro_batch=8, ranks=3) is not None


def test_the_rate_of_another_batch_follows_the_noise_where_it_is_known() -> None:
    """Far above the noise scale the rate hardly moves; below it does in proportion."""
    at, run = regression_job(batch_size=64), run_folder(critical=1.0, today=64)
    plain = found("RB501", at, micro_batch=64, accumulation=2)
    assert plain is not None
    assert "lr 0.01, by the rule linear: 0.02" in plain.seen
    assert found("RB501", at, micro_batch=64, accumulation=2, run=run) is None


@pytest.mark.parametrize(
    "how",
    [
        {"schedule": rb.schedules.Ramp(16, 64, 1000)},
        {"micro_batch": 16},
    ],
)
def test_the_rate_is_not_judged_of(how: dict[str, Any]) -> None:
    assert found("RB501", regression_job(), **how) is None


def test_a_loops_own_batch_does_not_say_what_the_rate_is_for() -> None:
    job = regression_job()
    model = job.make_model()
    loop = {"model": model, "loss": job.loss, "batch": job.data}
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    assert found("RB501", **loop, optimizer=sgd, micro_batch=16, ranks=4) is None
    assert found("RB602", **loop, optimizer=sgd, micro_batch=256, ranks=4) is None


def test_a_scheduler_leaves_the_loops_optimizer_usable() -> None:
    """It marks an optimizer; the linter looks at one like it, without the marks."""
    job = regression_job()
    model = job.make_model()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = CosineAnnealingLR(sgd, T_max=10)
    loop = {"model": model, "loss": job.loss, "batch": job.data}
    assert rb.check(**loop, optimizer=sgd, scheduler=scheduler).items == ()
    sgd.step()
    assert "initial_lr" in sgd.param_groups[0]


def test_a_run_of_steps_is_counted() -> None:
    """Against a loop that takes every step, within 1 %."""
    ramp = rb.schedules.Ramp(16, 128, 5_000)
    seen = steps = 0
    while seen < 20_000:
        seen += ramp.batch_size(seen)
        steps += 1
    assert _steps(ramp, 20_000) == pytest.approx(steps, rel=0.01)


def test_a_scheduler_under_a_ramp_is_told_in_steps() -> None:
    job = regression_job(epochs=40)
    sgd = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
    told = found(
        "RB502",
        job,
        schedule=rb.schedules.Ramp(16, 64, 5_000),
        scheduler=CosineAnnealingLR(sgd, T_max=640),
    )
    assert told is not None
    assert "10,200 examples are" in told.seen
    assert "not 640 of 16" in told.seen
    stays = {"schedule": rb.schedules.Constant(16)}
    scheduler = CosineAnnealingLR(sgd, T_max=640)
    assert found("RB502", job, **stays, scheduler=scheduler) is None


@pytest.mark.parametrize(("epochs", "bad"), [(40, True), (52, False)])
def test_a_scheduler_by_examples_may_be_too_long_as_well(
    epochs: int, bad: bool
) -> None:
    """Four fifths of a cosine are as good as all of it."""
    sgd = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
    cosine = CosineAnnealingLR(sgd, T_max=1024)
    scheduler = rb.schedules.ByExamples(cosine, batch_size=16)
    job = regression_job(epochs=epochs)
    assert (found("RB503", job, scheduler=scheduler) is not None) == bad


def test_the_decay_of_an_average_is_read() -> None:
    class Decaying:
        decay = 0.99

    net = nn.Linear(1, 1)
    assert _decay_of(AveragedModel(net, avg_fn=get_ema_avg_fn(0.9))) == 0.9
    assert _decay_of(Decaying()) == 0.99
    assert _decay_of(AveragedModel(net)) is None
    assert _decay_of(None) is None


@pytest.mark.parametrize(
    ("optimizer", "batch_size", "short"),
    [
        (lambda p: torch.optim.Adam(p, betas=(0.9, 0.95)), 18, True),
        (lambda p: torch.optim.Adam(p, betas=(0.9, 0.95)), 19, False),
        (lambda p: torch.optim.Adam(p, betas=(0.9, 0.0)), 64, True),
        (lambda p: torch.optim.Adam(p), 1, False),
        (lambda p: torch.optim.RMSprop(p), 2, False),  # alpha is no beta2
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), 1, False),
    ],
)
def test_a_second_moment_is_short_by_examples(
    optimizer: Any, batch_size: int, short: bool
) -> None:
    """Half-lives of 0.95 and 0.99 are 13.5 and 69 updates; told is below 256."""
    job = regression_job(optimizer=optimizer, batch_size=batch_size)
    assert (found("RB506", job) is not None) == short
    ramp = rb.schedules.Ramp(1, 64, 1000)  # along which beta2 follows
    assert (found("RB506", job, schedule=ramp) is not None) == short


def test_norms_at_the_start_are_those_of_whole_batches() -> None:
    job = regression_job(clip_norm=1.0)
    norms = _first_norms(Probe(job, setup=Setup(micro_batch=4)))
    drawn = torch.randperm(job.length, generator=torch.Generator().manual_seed(0))
    for norm, indices in zip(norms, drawn.split(16), strict=False):
        model = job.make_model()
        value, _ = job.mean_loss(model, (job.data[0][indices], job.data[1][indices]))
        (gradient,) = torch.autograd.grad(value, list(model.parameters()))
        assert norm == pytest.approx(float(gradient.norm()))
    assert len(norms) == 3


def test_a_limit_that_binds_at_first_is_no_fault() -> None:
    """Norms of 5 to 10 at the initial weights: told from a tenth of the least on."""
    least = min(_first_norms(Probe(regression_job(clip_norm=1.0))))
    assert found("RB507", regression_job(clip_norm=0.11 * least)) is None
    assert found("RB507", regression_job(clip_norm=0.09 * least)) is not None


CLASSES = torch.arange(400) % 4


class WithTargets:
    targets = CLASSES.tolist()


class WithWords:
    labels = ("cat", "dog") * 200


@pytest.mark.parametrize(
    "data",
    [
        (torch.zeros(400, 2), CLASSES),
        (torch.zeros(400, 2), CLASSES.to(torch.uint8), torch.zeros(400)),
        (torch.zeros(400, 2), CLASSES, CLASSES > 0),
        TensorDataset(torch.zeros(400, 2), CLASSES),
        WithTargets(),
    ],
)
def test_labels_are_found(data: Any) -> None:
    labels = _labels(data)
    assert labels is not None
    assert torch.equal(labels, CLASSES)


@pytest.mark.parametrize(
    "data",
    [
        (torch.zeros(400, 2),),  # no integers
        (torch.zeros(400, 2, dtype=torch.long),),  # tokens
        (torch.arange(400),),  # numbers of examples
        (CLASSES + 1,),  # lengths
        range(400),
        None,
        WithWords(),
        (torch.zeros(400, 2), CLASSES, CLASSES),  # which of them?
        (torch.zeros(400, 2), CLASSES > 0),  # a mask
    ],
)
def test_what_is_no_label(data: Any) -> None:
    assert _labels(data) is None


def classes(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def test_counts_are_no_classes() -> None:
    """Whole numbers with a rare one among them, as targets and as labels."""

    def counted(model: nn.Module, batch: Any) -> Tensor:
        rate = model(batch[0])[:, 0]
        return nn.functional.poisson_nll_loss(rate, batch[1].float())

    data = (torch.zeros(4000, 5), (torch.arange(4000) % 200 == 0).long())
    net = {"model": lambda: nn.Linear(5, 2), "data": data, "batch_size": 16}
    assert found("RB601", regression_job(**net, loss=counted)) is None
    assert found("RB601", regression_job(**net, loss=classes)) is not None


def test_even_classes_and_weighted_draws_are_no_rare_class() -> None:
    even = (torch.zeros(2000, 5), torch.arange(2000) % 50)
    net: dict[str, Any] = {"model": lambda: nn.Linear(5, 50), "loss": classes}
    assert found("RB601", regression_job(**net, data=even, batch_size=4)) is None
    rare = TensorDataset(torch.zeros(4000, 5), (torch.arange(4000) % 200 == 0).long())
    loop = {"model": nn.Linear(5, 2), "loss": classes, "batch": rare[:16]}
    drawn = WeightedRandomSampler([1.0] * 4000, 4000)
    plain = DataLoader(rare, batch_size=16)
    chosen = DataLoader(rare, batch_size=16, sampler=drawn)
    assert found("RB601", **loop, loader=plain) is not None
    assert found("RB601", **loop, loader=chosen) is None


def test_a_run_without_noise_says_nothing_of_the_critical_batch() -> None:
    run = run_folder(points=0, t0=1e-4)
    job = regression_job(examples=8192, batch_size=4096)
    for code in ("RB605", "RB606"):
        assert found(code, job, run=run) is None


def test_a_batch_smaller_than_its_passes_is_refused_once() -> None:
    with pytest.raises(rb.SettingError, match="smaller than the passes"):
        rb.check(regression_job(), ranks=32)


@pytest.mark.parametrize(
    ("rate", "what"),
    [
        ("warmup:20k", "the warm-up is over"),
        ("warmup:20k+cosine:40k", "the warm-up is over"),
        ("warmup:1k+cosine:40k", "the learning rate has decayed"),
        ("warmup:1k", ""),
    ],
)
def test_what_the_run_ends_before(rate: str, what: str) -> None:
    """A run of 40 epochs of 256 examples (one held back of 256)."""
    job = regression_job(epochs=40, rate=rate)
    told = found("RB503", job)
    assert (told.what if told else "") == (what and f"the run ends before {what}")
    if told:
        assert f"cosine:{job.run_examples:.0f}" in told.fix
        fixed = regression_job(epochs=40, rate=f"cosine:{job.run_examples:.0f}")
        assert found("RB503", fixed) is None


def test_a_loss_that_draws_in_eval_mode_is_not_held_against_its_pieces() -> None:
    """Random masks: the pieces and the whole are means over other tokens."""

    def masked(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        weight = batch[1].abs() * (torch.rand_like(batch[1]) < 0.5)
        return (weight * (model(batch[0]) - batch[1]).square()).sum() / weight.sum()

    assert _off(Probe(regression_job(loss=masked)), 4, 3) == 0.0


def test_how_a_batch_is_made_is_said_where_it_was_assumed() -> None:
    job = regression_job()
    said = rb.check(job, select="RB101", ranks=2)
    assert str(said) == "B = 16 as 8 at once x 2 ranks\n1 checks passed"
    assert rb.check(job, select="RB101", micro_batch=8, ranks=2).split == ""
    loop = {"model": job.make_model(), "loss": job.loss, "batch": job.data}
    said = rb.check(**loop, select="RB101", ranks=4, accumulation=2)
    assert said.split == f"B = {8 * 256} as 256 at once x 2 accumulated x 4 ranks"
    told = found("RB501", job, micro_batch=1, accumulation=1)
    assert told is not None
    assert told.seen.startswith("B = 1 as 1 at once; lr")
