"""The race finds the best batch and rate, by steps and not by the clock."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rightbatch as rb
from beliefs import belief
from cases import noisy_quadratic_job, regression_job, with_target
from reference import quadratic_steps
from rightbatch.measure.measurements import MetricPoint, Race
from rightbatch.schedules.scaling import scaling_for
from rightbatch.training.run_state import RunState, Snapshot
from rightbatch.tuning import lane as lane_module
from rightbatch.tuning.lane import LaneRun, Setting
from rightbatch.tuning.race import Racing

BATCHES = (4, 8, 16, 32, 64, 128)
BEST_LR = 1.0  # at a batch of 16
NOW = "rightbatch.tuning.race.time"


def step_s(batch_size: int) -> float:
    """What a step takes by the law, and by the clock of these tests."""
    return 1 + batch_size / 16


def settings_of(job: rb.Job, lr: float, octaves: int = 8) -> list[Setting]:
    """Today's first, then every batch at rates a factor of the square root of 2."""

    def setting(batch_size: int, own_lr: float) -> Setting:
        return Setting(
            batch_size=batch_size,
            micro_batch=batch_size,
            lr=own_lr,
            lr_factor=own_lr / lr,
            scaling=scaling_for("sgd", job.batch_size, batch_size, rule="none"),
            step_s=step_s(batch_size),
        )

    rates = [lr * 2 ** (i / 2) for i in range(-2 * octaves, 2 * octaves + 1)]
    grid = [(b, r) for b in BATCHES for r in rates if (b, r) != (job.batch_size, lr)]
    return [setting(job.batch_size, lr), *(setting(*pair) for pair in grid)]


@dataclass
class Timed:
    """A race, and the clock that only its steps move."""

    racing: Racing
    clock: list[float]

    def search(self, seconds: float) -> Race:
        self.racing.search(self.clock[0] + seconds)
        return self.racing.race()

    def best(self) -> Setting:
        """Of least expected cost among those that reached the last level."""
        standings, _ = self.racing.standings()
        costs = (standings.draws + self.racing.log_cost).mean(0)
        place = int(np.where(standings.runs > 0, costs, np.inf).argmin())
        return self.racing.settings[place]


def begun(
    monkeypatch: pytest.MonkeyPatch,
    job: rb.Job,
    lr: float,
    *,
    cost: Callable[[int], float] = step_s,
    metrics: Sequence[MetricPoint] = (),
    measured_steps: int = 0,
    diverged: bool = False,
    **more: Any,
) -> Timed:
    """A race of a job at its own start; its noise is expected to be 64."""
    run, clock = RunState.start(job), [0.0]
    start, step = run.snapshot(), run.step
    for _ in range(measured_steps):
        run.step()

    def counted() -> Any:
        clock[0] += step_s(run.batch_size)
        return step()

    monkeypatch.setattr(run, "step", counted)
    monkeypatch.setattr(NOW, SimpleNamespace(monotonic=lambda: clock[0]))
    settings = settings_of(job, lr)
    prior = belief(job.batch_size, lr, noise=math.log(64), noise_spread=1.2)
    racing = Racing(
        run,
        start,
        None,
        settings,
        prior,
        metric_s=0.0,
        unit_costs=[cost(s.batch_size) for s in settings],
        **more,
    )
    racing.take_in(metrics, diverged=diverged)
    return Timed(racing, clock)


def quadratic(
    monkeypatch: pytest.MonkeyPatch, off: float, **more: Any
) -> tuple[Timed, float]:
    lr = BEST_LR * off
    job = noisy_quadratic_job(lr)
    job = replace(job, **{k: v for k, v in more.items() if k in ("target", "goal")})
    rest = {k: v for k, v in more.items() if k not in ("target", "goal")}
    return begun(monkeypatch, job, lr, **rest), lr


def true_costs(cost: Callable[[int], float] = step_s) -> dict[tuple[int, int], float]:
    """Of batches, and of rates in half octaves about the best at 16, by simulation."""
    return {
        (b, half): quadratic_steps(b, BEST_LR * 2 ** (half / 2)) * cost(b)
        for b in BATCHES
        for half in range(-5, 4)
    }


@pytest.mark.parametrize("off", [16.0, 1 / 16])
def test_the_best_is_found_from_a_rate_far_off(
    off: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within 1.3 x of the best of all, from today's at 16 x too much or too little."""
    race, lr = quadratic(monkeypatch, off)
    result = race.search(3000)
    best, least = race.best(), min(true_costs().values())
    found = quadratic_steps(best.batch_size, best.lr) * step_s(best.batch_size)
    assert found <= 1.3 * least
    today = quadratic_steps(16, lr) * step_s(16)
    assert today > 5 * least
    # The best ran often enough, each time on a stream of its own.
    own = [
        x for x in result.lanes if (x.batch_size, x.lr) == (best.batch_size, best.lr)
    ]
    assert len(own) >= 3
    assert len({lane.seed for lane in own}) == len(own)
    assert all(lane.end == "target" for lane in own)
    # Today's is the first, on the job's own stream.
    first = result.lanes[0]
    assert (first.batch_size, first.lr, first.seed) == (16, lr, 0)
    assert result.target == 0.004
    # All within a fraction of what one run of every setting of the grid would take.
    assert race.clock[0] < 3000
    assert len(result.lanes) < len(race.racing.settings) / 4


def test_first_are_rates_far_below_and_far_above_todays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    race, lr = quadratic(monkeypatch, 1.0)
    lanes = race.search(1000).lanes[1:3]
    assert [x.batch_size for x in lanes] == [16, 16]
    assert [x.lr for x in lanes] == pytest.approx([lr / 8, 8 * lr])


def test_a_leader_that_has_stalled_is_followed_by_a_quarter_of_its_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its curve is flat, and the target far below: no longer run meets it."""
    race, _ = quadratic(monkeypatch, 1.0)
    racing = race.racing
    start = racing.start_metric
    for setting, flat in ((racing.today, 0.4), (racing.settings[40], 0.3)):
        lane = racing._begin(setting)
        lane.steps = [2**i for i in range(1, 8)]
        lane.metrics = [start * m for m in (0.8, 0.7, 0.6, 0.5, flat, flat, flat)]
    racing._begin(racing.settings[1])
    leader = racing.settings[racing._leader(racing.standings()[0])]
    place = racing._new(1000.0)
    assert place is not None
    assert racing.settings[place].batch_size == leader.batch_size
    assert racing.settings[place].lr == pytest.approx(leader.lr / 4)
    for lane in racing.lanes[1:3]:  # they come down to it
        lane.metrics[-3:] = [0.1, 0.02, 0.0045]
    place = racing._new(1000.0)
    assert place is not None
    assert racing.settings[place].lr != pytest.approx(leader.lr / 4)


def test_the_same_again_is_the_same_race(monkeypatch: pytest.MonkeyPatch) -> None:
    races = [quadratic(monkeypatch, 4.0)[0].search(250) for _ in range(2)]
    assert repr(races[0]) == repr(races[1])
    assert len(races[0].lanes) > 5


def test_fewest_examples_are_searched_for_where_these_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    race, _ = quadratic(monkeypatch, 1.0, cost=float)
    result = race.search(1500)
    best, least = race.best(), min(true_costs(float).values())
    found = quadratic_steps(best.batch_size, best.lr) * best.batch_size
    assert found <= 1.3 * least
    assert best.batch_size <= 8
    # Today's is near the best, so it is repeated as well.
    today = [x for x in result.lanes if (x.batch_size, x.lr) == (16, BEST_LR)]
    assert len(today) >= 2


@pytest.mark.parametrize("seconds", [1.0, 100.0, 140.0, 400.0])
def test_a_race_keeps_to_its_time(
    seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what it got to is a race that can be judged, however short."""
    race, _ = quadratic(monkeypatch, 0.25)
    result = race.search(seconds)
    longest = step_s(max(BATCHES))
    assert race.clock[0] <= seconds + longest
    assert result.seconds == race.clock[0]
    assert sum(lane.seconds for lane in result.lanes) == pytest.approx(race.clock[0])
    if seconds <= 100:  # three lanes of ten steps are 60 s, and not all of it is theirs
        assert all(not lane.steps for lane in result.lanes)
    else:
        assert len(result.lanes) >= 3
        race.racing.standings()


def test_more_time_goes_deeper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a target the best get longer and longer, and the others are left."""
    depths = []
    for seconds in (300.0, 1500.0):
        race, _ = quadratic(monkeypatch, 1.0, target=None)
        result = race.search(seconds)
        assert not any(lane.end == "target" for lane in result.lanes)
        assert result.target is None
        lengths = sorted(lane.seconds for lane in result.lanes)
        depths.append(lengths[-2])
    assert depths[1] > 1.3 * depths[0], depths
    assert lengths[0] < depths[1] / 3


def test_where_high_is_good_the_race_is_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    low = quadratic(monkeypatch, 0.25)[0].search(200)
    job = noisy_quadratic_job(0.25 * BEST_LR)
    assert job.evaluate is not None
    loss = job.evaluate
    turned = replace(
        job, evaluate=lambda model: -loss(model), goal="max", target=-0.004
    )
    high = begun(monkeypatch, turned, 0.25 * BEST_LR).search(200)
    assert [x.steps for x in high.lanes] == [x.steps for x in low.lanes]
    assert [x.end for x in high.lanes] == [x.end for x in low.lanes]
    assert high.start == -low.start
    assert (high.goal, high.target) == ("max", -0.004)


def test_a_race_in_which_all_diverge_comes_to_an_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    race, _ = quadratic(monkeypatch, 1e30)
    result = race.search(300)
    assert {lane.end for lane in result.lanes} == {"diverged"}
    assert race.clock[0] <= 300 + step_s(max(BATCHES))
    # Not the same again and again: lower and lower rates.
    pairs = [(lane.batch_size, lane.lr) for lane in result.lanes]
    assert len(set(pairs)) == len(pairs)
    assert min(lr for _, lr in pairs) < 1e30 / 4


def test_the_measuring_run_is_the_first_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on where it stands, as one that was never broken off."""
    alone = quadratic(monkeypatch, 0.25, target=None)[0].racing
    whole = LaneRun(alone.today, 0)
    alone._ends = math.inf
    alone._train(whole, 40)
    points = [
        MetricPoint(step=step, examples=16 * step, metric=metric)
        for step, metric in zip(whole.steps, whole.metrics, strict=True)
    ]
    alone._train(whole, 80)
    race, _ = quadratic(
        monkeypatch, 0.25, target=None, metrics=points, measured_steps=20
    )
    lane = race.racing.lanes[0]
    assert lane.steps == [point.step for point in points]
    assert lane.metrics == [point.metric for point in points]
    assert lane.open
    assert race.racing.run.steps == 0  # the others begin at the start
    first = race.search(1500).lanes[0]
    assert len(first.steps) > len(points)
    assert first.metrics[first.steps.index(40)] == whole.metrics[-1]


def test_a_measuring_run_at_the_target_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [MetricPoint(step=20, examples=320, metric=0.001)]
    race, _ = quadratic(monkeypatch, 1.0, metrics=points, measured_steps=20)
    assert race.racing.lanes[0].end == "target"
    assert not race.racing.lanes[0].open


def test_the_result_of_todays_run_is_the_target_of_a_job_with_a_length(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = replace(noisy_quadratic_job(1.0), target=None, examples=320)
    points = [MetricPoint(step=20, examples=320, metric=0.02)]
    race = begun(monkeypatch, job, 1.0, metrics=points, measured_steps=20)
    assert race.racing.target == 0.02
    assert race.racing.lanes[0].end == "target"
    short = begun(monkeypatch, job, 1.0, metrics=points[:0], measured_steps=10)
    assert short.racing.target is None


def test_a_run_that_got_nowhere_is_no_target(monkeypatch: pytest.MonkeyPatch) -> None:
    """Today's rate is far too high: the start itself is as good as its result."""
    job = replace(noisy_quadratic_job(1.0), target=None, examples=320)
    points = [MetricPoint(step=20, examples=320, metric=1e6)]
    race = begun(monkeypatch, job, 1.0, metrics=points, measured_steps=20)
    assert race.racing.target is None
    assert race.racing.lanes[0].open


def test_a_start_at_the_target_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(rb.JobError, match="already met"):
        quadratic(monkeypatch, 1.0, target=1e6)


def test_a_measuring_run_that_diverged_begins_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    points = [MetricPoint(step=5, examples=80, metric=0.9)]
    race, _ = quadratic(monkeypatch, 1e6, metrics=points, diverged=True)
    assert not race.racing.lanes[0].steps
    first = race.search(200).lanes[0]
    assert first.end == "diverged"
    assert 5 not in first.steps


def weights_of(snapshot: Snapshot) -> Tensor:
    return torch.cat([w.flatten() for w in snapshot.state["model"].values()])


@pytest.mark.parametrize("from_scratch", [True, False])
def test_repeats_begin_from_other_weights_unless_they_are_given(
    from_scratch: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint is where the run is: its repeats differ in their stream alone."""
    job = with_target(regression_job(), 1.2)
    begun_at: dict[int, Tensor] = {}
    train = lane_module.train_lane

    def noted(run: RunState, start: Snapshot, lane: LaneRun, *a: Any, **k: Any) -> None:
        if not lane.steps:
            kept = begun_at.setdefault(lane.seed, weights_of(start))
            assert torch.equal(kept, weights_of(start))
        train(run, start, lane, *a, **k)

    monkeypatch.setattr("rightbatch.tuning.race.train_lane", noted)
    race = begun(monkeypatch, job, 0.01, from_scratch=from_scratch)
    race.search(2000)
    assert {0, 1000, 2000, 3000} <= set(begun_at)
    given = race.racing.start
    assert torch.equal(begun_at[0], weights_of(given))
    for seed in (1000, 2000):
        same = torch.equal(begun_at[seed], weights_of(given))
        assert same != from_scratch
    if from_scratch:
        assert not torch.equal(begun_at[1000], begun_at[2000])


def test_no_more_states_are_kept_than_there_is_memory_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept: list[int] = []
    race, _ = quadratic(monkeypatch, 0.25, most_states=4)

    def tick(text: str) -> None:
        kept.append(sum(lane.state is not None for lane in race.racing.lanes))

    race.racing.tick = tick
    result = race.search(1000)
    assert max(kept) <= 4
    assert len(result.lanes) > 8


def test_without_memory_for_three_states_nothing_is_searched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    race, _ = quadratic(monkeypatch, 0.25, most_states=2)
    assert len(race.search(1000).lanes) == 1


def test_what_fails_at_a_large_batch_says_nothing_of_smaller_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is the machine's doing, and no edge of divergence."""
    job = noisy_quadratic_job(0.25 * BEST_LR)
    loss = job.loss

    def greedy(model: nn.Module, batch: tuple[Tensor]) -> Tensor:
        if len(batch[0]) >= 32:
            raise ValueError("not of this size")
        found = loss(model, batch)
        assert isinstance(found, Tensor)
        return found

    race = begun(monkeypatch, replace(job, loss=greedy), 0.25 * BEST_LR)
    ends: dict[bool, set[str]] = {True: set(), False: set()}
    for lane in race.search(1000).lanes:
        ends[lane.batch_size >= 32].add(lane.end)
    assert ends[True] == {"failed"}
    assert "target" in ends[False]
    standings, passages = race.racing.standings()
    best = race.best()
    assert best.batch_size in (8, 16)
    failed = {(x.batch_size, x.lr) for x in race.racing.race().lanes if not x.steps}
    assert failed.isdisjoint(passages.diverged)
    assert len(standings.runs) == len(race.racing.settings)


def test_a_job_whose_metric_stands_still_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing tells the candidates apart: no level, so nothing is repeated."""

    def evaluate(model: nn.Module) -> float:
        return 1.0

    job = replace(with_target(regression_job(), 0.0), evaluate=evaluate)
    race = begun(monkeypatch, job, 0.01)
    result = race.search(400)
    pairs = [(lane.batch_size, lane.lr) for lane in result.lanes]
    assert len(set(pairs)) == len(pairs) > 1
    assert {m for lane in result.lanes for m in lane.metrics} <= {1.0}
    assert all(lane.state is None for lane in race.racing.lanes)
    assert race.clock[0] <= 400 + step_s(max(BATCHES))
