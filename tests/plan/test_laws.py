"""The laws of a job: what noise and race say together, and what they predict."""

import math
from dataclasses import replace

import numpy as np
import pytest

import rightbatch as rb
from cases import Truth, made_up, raced, ran_to_target
from reference import relative_time
from rightbatch.core.findings import Coupled
from rightbatch.fit.critical_batch import critical_from_noise
from rightbatch.fit.rate_law import NOISE
from rightbatch.measure.measurements import Measurements, MetricPoint
from rightbatch.noise.statistics.moments import NoiseMoments
from rightbatch.plan.choice import choose
from rightbatch.plan.laws import (
    GROWTH,
    NOISE_SPREAD,
    POWERS,
    critical_of,
    laws_of,
    rate_prior,
)
from rightbatch.plan.options import candidate_batches

MANY = 100_000


def prior_of(found: Measurements, *, raced: bool = True):
    points = found.noise
    noise = (
        critical_from_noise(points, found.job.batch_size) if len(points) > 1 else None
    )
    return rate_prior(found, noise, raced=raced)


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW"])
def test_the_noise_is_what_is_believed_before(optimizer: str) -> None:
    found = made_up(critical=200, optimizer=optimizer)
    prior = prior_of(found)
    assert math.exp(prior.noise) == pytest.approx(200, rel=0.02)
    assert NOISE_SPREAD <= prior.noise_spread < 1.5 * NOISE_SPREAD
    assert (prior.power, prior.power_spread) == POWERS[found.job.family]
    assert (prior.batch_size, prior.lr) == (64, 0.1)
    assert prior.growth == 0.0  # as along the run: the noise stayed
    assert prior.lr_spread > 1


def test_without_a_race_todays_rate_is_taken_as_right() -> None:
    prior = prior_of(made_up(), raced=False)
    assert prior.lr_spread <= 0.02
    law = laws_of(made_up()).rate
    assert law.best_lr(64) == pytest.approx(0.1)


def test_noise_that_is_not_bounded_or_not_known_is_a_wide_belief() -> None:
    found = made_up()
    none = prior_of(replace(found, noise=()))
    assert math.exp(none.noise) == pytest.approx(64)
    assert none.noise_spread >= 2 * NOISE_SPREAD
    assert none.growth == GROWTH
    silent = replace(found.noise[0].plain, grad_norm_sq=-0.05)
    open_end = replace(
        found, noise=tuple(replace(p, plain=silent) for p in found.noise)
    )
    assert not critical_from_noise(open_end.noise, 64).critical_batch.bounded
    belief = prior_of(open_end)
    assert math.isfinite(belief.noise)
    assert belief.noise_spread > NOISE_SPREAD


def test_growth_of_the_noise_along_the_run_is_believed() -> None:
    found = made_up(critical=100)

    def grown(point: NoiseMoments, factor: float) -> NoiseMoments:
        return replace(point, trace=factor * point.trace)

    points = [
        replace(
            p,
            plain=grown(p.plain, (p.step / 10) ** 0.6),
            noise_scale=p.noise_scale.scale((p.step / 10) ** 0.6),
        )
        for p in found.noise
    ]
    assert prior_of(replace(found, noise=tuple(points))).growth == pytest.approx(0.6)


def test_a_race_says_how_good_todays_rate_is() -> None:
    """It is four times too small; the noise measured was twice too large."""
    truth = Truth(critical=100, lr_max=4 * 0.1 * (1 + 100 / 64))
    tried = [(b, lr) for b in (8, 32, 64, 128) for lr in (0.05, 0.1, 0.2, 0.4, 0.8)]
    laws = laws_of(raced(made_up(critical=200), truth, [(64, 0.1), *tried]))
    assert laws.rate.best_lr(64) == pytest.approx(0.4, rel=0.1)
    critical = laws.rate.critical_batch
    assert critical.low <= 100 <= critical.high
    assert critical.value == pytest.approx(100, rel=0.25)
    assert laws.noise is not None
    assert laws.noise.critical_batch.value == pytest.approx(200, rel=0.02)
    assert laws.critical.critical_batch == critical
    assert laws.critical.draws == pytest.approx(np.exp(laws.rate.draws[:, NOISE]))
    value, draws = laws.relative_steps(16, 0.1)
    expected = truth.steps(16, 0.1) / truth.steps(64, 0.1)
    assert value == pytest.approx(expected, rel=0.1)
    assert np.quantile(draws, 0.025) <= expected <= np.quantile(draws, 0.975)
    assert laws.relative_steps(64, 0.1)[0] == 1.0


def test_how_long_a_run_takes_is_known_from_runs_that_reached_the_target() -> None:
    assert laws_of(made_up()).steps_to_target is None
    assert laws_of(ran_to_target(1000)).steps_to_target == 1000
    truth, tried = Truth(critical=100), [(64, 0.1), (16, 0.03), (32, 0.05)]
    by_race = laws_of(raced(made_up(critical=100), truth, tried)).steps_to_target
    assert by_race == pytest.approx(truth.steps(64, 0.1), rel=0.05)
    # Today's does not get there: what it would take is the law's.
    others = raced(made_up(critical=100), truth, [(16, 0.03), (32, 0.05), (32, 0.03)])
    by_law = laws_of(others).steps_to_target
    assert by_law == pytest.approx(truth.steps(64, 0.1), rel=0.15)
    short = raced(made_up(critical=100), truth, tried, seconds=2.0)
    assert laws_of(short).steps_to_target is None


def test_a_batch_is_split_as_is_fastest_within_memory_and_alike_on_ranks() -> None:
    laws = laws_of(made_up(t0=0.1, t1=1e-4))
    assert laws.split(512, None) == (128, 4)
    assert laws.split(96, None) == (96, 1)
    limit = 10_000_000 + 17 * 100_000
    assert laws.split(512, limit) == (16, 32)
    assert laws.split(512, 9_000_000) is None
    both = replace(laws, world_size=3)
    assert both.split(24, limit) == (12, 2)
    assert both.split(8, limit) == (8, 1)  # not alike, but there is no other
    expected = relative_time(0.1, 1e-4, 1, 128, 64) * 65 / 64 / (1 + 1 / 128)
    ratio = laws.step_s(128) / laws.step_s(64)
    assert ratio == pytest.approx(expected, rel=0.02)


def coupled(kind: Coupled, *, today: int = 8, world_size: int = 1) -> Measurements:
    found = made_up(t0=0.1, t1=1e-4, critical=1000, today=today)
    job = replace(found.job, coupled=kind, coupled_batch=today // world_size)
    return replace(
        found, job=job, machine=replace(found.machine, world_size=world_size)
    )


def test_what_is_normalised_together_stays() -> None:
    laws = laws_of(coupled("normalization"))
    assert laws.split(128, None) == (8, 16)
    assert laws.split(8, None) == (8, 1)
    assert laws.split(4, None) is None
    assert laws.split(20, None) is None
    assert candidate_batches(laws, MANY) == [8 * 2**i for i in range(8)]
    plan = rb.decide(coupled("normalization", world_size=2)).plan
    assert plan.batch_size > 8
    assert (plan.micro_batch, plan.coupled_batch) == (4, 4)
    assert plan.accumulation == plan.batch_size // 8


def test_groups_of_what_is_normalised_together_share_a_micro_batch() -> None:
    """Where that was timed; a multiple of 8 each, as fast as any split."""
    found = coupled("normalization")
    found = replace(found, job=replace(found.job, grouped=True))
    laws = laws_of(found)
    assert laws.split(64, None) == (64, 1)
    assert laws.split(12, None) is None
    plan = rb.decide(found).plan
    assert plan.micro_batch > 8 == plan.coupled_batch
    assert plan.micro_batch % 8 == 0


def test_memory_does_not_make_it_smaller() -> None:
    found = coupled("normalization")
    with pytest.raises(rb.SettingError, match="not even"):
        choose(found, memory_bytes=10_000_000 + 7 * 100_000)
    assert choose(found, memory_bytes=10_000_000 + 9 * 100_000).options


def test_a_loss_that_compares_examples_is_made_at_once() -> None:
    found = coupled("loss", today=64)
    laws = laws_of(found)
    assert laws.split(128, None) == (128, 1)
    assert laws.split(256, None) is None  # never timed at once
    assert candidate_batches(laws, MANY)[-1] == 128
    assert all(o.accumulation == 1 for o in choose(found).options)
    plan = rb.decide(found).plan
    assert plan.coupled_batch == plan.micro_batch == plan.batch_size


def test_where_nothing_touches_splits_are_free() -> None:
    laws = laws_of(made_up(today=8))
    assert laws.split(128, None) == (128, 1)
    assert candidate_batches(laws, MANY)[0] == 1
    assert rb.decide(made_up()).plan.coupled_batch is None


def endless(found: Measurements) -> Measurements:
    """The same with noise in which no signal can be seen."""
    moments = NoiseMoments(
        grad_norm_sq=0.0,
        trace=1.0,
        var_grad_norm_sq=1e-6,
        var_trace=1e-6,
        covariance=0.0,
    )
    points = (replace(p, plain=moments) for p in found.noise)
    return replace(found, noise=tuple(points))


def growing(found: Measurements) -> Measurements:
    """The same, of a loss that grows without end: rounding is all that is left."""
    first, *others = found.noise
    lost = replace(first.plain, grad_norm_sq=5.7e19, trace=-4.6e15, var_trace=0.0)
    lost = replace(lost, var_grad_norm_sq=0.0, covariance=0.0)
    return replace(found, noise=(first, *(replace(p, plain=lost) for p in others)))


def overfitted(found: Measurements) -> Measurements:
    """The same, the metric far worse again after the fourth of eight points."""
    values = [*np.linspace(3.0, 1.0, 20), *np.linspace(1.0, 2.0, 60)]
    metrics = tuple(
        MetricPoint(step=2 * (i + 1), examples=128 * (i + 1), metric=value)
        for i, value in enumerate(values)
    )
    job = replace(found.job, has_evaluate=True, goal="min", target=None)
    return replace(found, job=job, metrics=metrics, metric="evaluate")


@pytest.mark.parametrize("kind", ["noise", "endless", "growing", "overfitted", "raced"])
def test_every_command_tells_one_critical_batch(kind: str) -> None:
    """`measure` before there is a law of time, `plan` and `cluster` from the file."""
    found = made_up(critical=100)
    if kind == "endless":
        found = endless(found)
    if kind == "growing":
        found = growing(found)
    if kind == "overfitted":
        found = overfitted(found)
    if kind == "raced":
        truth = Truth(critical=50, lr_max=0.1)
        found = raced(found, truth, [(64, 0.1), (16, 0.03), (32, 0.05), (128, 0.2)])
    laws = laws_of(found)
    measured = critical_of(replace(found, times=()))
    assert measured is not None
    assert measured == laws.critical.critical_batch
    assert math.isinf(measured.value) == (kind == "endless")
    if kind == "endless":
        assert measured.low > 0
    else:
        assert measured == laws.rate.critical_batch


def test_nothing_measured_tells_no_critical_batch() -> None:
    assert critical_of(replace(made_up(), noise=())) is None
