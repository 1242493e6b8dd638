"""The critical batch at a checkpoint, by branches that train on from there.

A noise scale is theory; this is the experiment. Branches are lanes of the race, whose
time is counted in examples, and the law of batch and rate is the race's.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from rightbatch.core.errors import SettingError, UnidentifiedError
from rightbatch.core.estimate import Estimate
from rightbatch.core.guards import preserved_rng
from rightbatch.core.progress import Phase, Progress
from rightbatch.core.real_number import real_number
from rightbatch.core.units import show_seconds
from rightbatch.core.whole_number import whole_number
from rightbatch.data.order.held_out import hold_out
from rightbatch.fit.passages import passages_of
from rightbatch.fit.rate_law import RatePrior, fit_rate_law
from rightbatch.job.job import Job
from rightbatch.job.optimizers import kinds_of
from rightbatch.measure.held_out_loss import metric_of
from rightbatch.measure.measurements import Lane, Race
from rightbatch.measure.noise import measure_noise
from rightbatch.plan.laws import GROWTH, GROWTH_SPREAD, LR_SPREAD, POWERS
from rightbatch.schedules.scaling import scaling_for, warn_of_unknown
from rightbatch.sweep.branch_penalties import (
    BranchPenalty,
    largest_without_loss,
    penalties_of,
)
from rightbatch.sweep.branch_record import BranchRecord
from rightbatch.training.any_checkpoint import load_start
from rightbatch.training.checkpoint import load_checkpoint
from rightbatch.training.run_folder import RUN
from rightbatch.training.run_state import RunState
from rightbatch.training.settings import Settings
from rightbatch.training.start_from import begin_from
from rightbatch.tuning.lane import EVALUATE_SHARE, LaneRun, Setting, set_up, train_lane

FACTORS = (1, 1 / 4, 1 / 2, 2, 4, 8)
# Of what the rule, without the noise that is to be calibrated, makes of the run's rate:
# a branch is too short to feel all the noise of a high one [measured: digits, 1,024
# examples: ½ ends 10 to 40 % lower]; beyond the critical batch the rule asks for too
# much, so the last is for larger batches only.
RATES = (1.0, 0.5, 0.25)
LEAST_STEPS = 8  # of the largest batch in a branch [assumed]
SHARE = 1 / 100  # of what the run has seen, at least: late, one example says little
EVALUATIONS = 10  # of a branch at the most, for their cost [assumed]
# Streams to be compared, and before an end that is not the budget's. [assumed]
LEAST_STREAMS, STREAMS = 2, 3
# Spread of the log of the critical batch before: it is to be compared with the noise
# scale, so that is not what is believed. [assumed]
BELIEVED = 3.0
# End to end, the interval of the critical batch is an answer below a factor 10; below 3
# no more branches are trained. [assumed]
DECIDED, NARROW = 10.0, 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchProbe:
    """What branches from a checkpoint say of the batch there.

    Attributes:
        examples: Seen before the checkpoint.
        run_share: The same as a share of the job's run, if its length is known.
        batch_size: Of the run there.
        lr: Learning rate of the first param group there.
        critical_batch: ``N`` of ``examples(B) = E_min (1 + B / N)`` to equal loss, each
            batch at its best rate: where twice the fewest examples are needed. It is
            that of a branch as a whole, along which it mostly grows.
        noise_scale: By the gradients at the checkpoint, as `NoiseMonitor` sees it.
        calibration: ``critical_batch / noise_scale``; None where no level was passed,
            or the noise scale has no upper end.
        largest_without_loss: Merrill's critical batch: the largest whose loss after
            equal examples is not worse by more than chance.
        penalties: In loss, by batch.
        horizon: Examples of each branch.
        streams: How often each batch was tried, on other examples.
        trained: Examples that all branches together trained on.
        seconds: They took.
        decided: Whether the critical batch is known well enough.
    """

    examples: int
    run_share: float | None
    batch_size: int
    lr: float
    critical_batch: Estimate
    noise_scale: Estimate
    calibration: Estimate | None
    largest_without_loss: int
    penalties: tuple[BranchPenalty, ...]
    horizon: int
    streams: int
    trained: int
    seconds: float
    decided: bool

    @property
    def verdict(self) -> str:
        """What it says, in sentences; what would settle it where it says little."""
        first = f"critical batch here is {self.critical_batch}"
        if self.decided:
            first = f"The {first}"
        else:
            each_s = show_seconds(self.seconds / self.streams)
            settled = f"more streams (a larger budget, each takes {each_s}) or longer "
            settled += "branches (examples=) would settle it"
            if any(
                p.lr >= self.lr
                for p in self.penalties
                if p.batch_size == self.batch_size
            ):
                settled = "no lower rate did better at the run's own batch, and none "
                settled += "higher is tried: a run at a higher rate would settle it"
            first = f"Undecided: the {first}; {settled}"
        if self.calibration is not None:
            first += f". The noise scale is {self.noise_scale}: calibration "
            first += f"{self.calibration}"
        return (
            f"{first}. After {self.horizon:,} examples no loss beyond chance is seen "
            f"up to B = {self.largest_without_loss} ({self.streams} streams)."
        )


def branch_probe(
    job: Job,
    start: str | Path,
    *,
    budget_s: float = 300.0,
    factors: Sequence[float] = FACTORS,
    examples: int | None = None,
    streams: int = 12,
    record: str | Path | None = None,
    progress: Progress | None = None,
) -> BranchProbe:
    """Measure the critical batch at a checkpoint by training on at other batches.

    Branches differ in batch and, from the optimizer's rule down, in learning rate; all
    read the same streams, cut differently, until the critical batch is known well or
    the budget is spent. Larger batches are made of micro-batches of the run's own size,
    so memory does not grow. One process does it all.

    Args:
        job: What is trained; the run's batch may differ from its.
        start: A run folder or checkpoint of rightbatch, from which everything goes on
            as it was; or what `rightbatch.training.any_checkpoint.load_start` reads.
        budget_s: Seconds it may take.
        factors: Batches over the run's own; 1 among them.
        examples: Of each branch; default: 8 steps of the largest batch, or a hundredth
            of what the run has seen, if that is more.
        streams: On so many at the most every batch is tried.
        record: A JSON file, written after every branch and gone on with.
        progress: Hears how far it is.

    Raises:
        SettingError: The checkpoint is not of this job, its learning rate is zero, or
            an argument makes no sense.
        RunFolderError: There is no checkpoint, or it or the record cannot be read.
        UnidentifiedError: The budget was too short to compare anything.
        JobError: The job's own code failed.

    Example:
        >>> import tempfile, rightbatch as rb, rightbatch.sweep
        >>> job = rb.load_job("digits")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = rb.train(job, out=f"{folder}/run", examples=960)
        ...     probe = rb.sweep.branch_probe(
        ...         job, f"{folder}/run", factors=(1, 2, 4), streams=2
        ...     )
        >>> [penalty.batch_size for penalty in probe.penalties]
        [16, 32, 64]

    References:
        Merrill et al. 2025, arXiv:2505.23971, for branches; McCandlish et al. 2018,
        arXiv:1812.06162, for the law.
    """
    ends = time.monotonic() + real_number(budget_s, "budget_s", positive=True)
    streams = whole_number(streams, "streams", least=LEAST_STREAMS)
    path, progress = None if record is None else Path(record), progress or Progress()
    with preserved_rng(), progress.phase("Branches", budget_s) as phase:
        run, exact = _begun(job, Path(start))
        try:
            branches = _Branches(run, exact, factors, examples, path)
            branches.train(ends, streams, phase)
            probe = branches.probe()
        finally:
            run.close()
        phase.summary = f"{probe.trained:,} examples, {probe.streams} streams"
    return probe


def _begun(job: Job, path: Path) -> tuple[RunState, bool]:
    """A run at the checkpoint, and whether its stream too stands where it stood."""
    start = load_start(path)
    exact = start.batch_size is not None  # a checkpoint of ours
    asked = start.path.parent.parent / RUN
    settings = Settings.load(asked) if exact and asked.is_file() else None
    if settings is not None:
        job = dataclasses.replace(job, clip_norm=settings.clip_norm)
    run = RunState.start(job, alone=True)
    if exact:
        run.restore(load_checkpoint(start.path))
    else:
        begin_from(run, start)
    if settings is not None:
        run.follow(settings.rate)
    if not run.lr:
        raise SettingError(
            f"there is no learning rate in {start.path} to train on with",
            seen=f"lr = {run.lr}",
            why="branches scale it with the batch",
            fix="an earlier checkpoint, before its schedule has ended",
        )
    return run, exact


class _Branches:
    """Branches under way, and what is measured where they begin."""

    def __init__(
        self,
        run: RunState,
        exact: bool,
        factors: Sequence[float],
        examples: int | None,
        path: Path | None,
    ) -> None:
        self.run, self.job, self.path, self.own = run, run.job, path, run.batch_size
        asked = [round(self.own * real_number(f, "factors")) for f in factors]
        batches = tuple(dict.fromkeys(b for b in asked if 1 <= b <= self.job.length))
        if len(batches) < 3 or self.own not in batches:
            raise SettingError(
                "branches need three batches, the run's own among them",
                seen=f"batches {asked}, the run's own {self.own}, "
                f"{self.job.length:,} examples of data",
                fix="factors=(1, 1/4, 1/2, 2, 4, 8)",
            )
        least = LEAST_STEPS * max(batches)
        horizon = examples or max(least, round(SHARE * run.examples))
        if horizon < least:
            raise SettingError(
                f"a branch takes {LEAST_STEPS} steps of the largest batch at the least",
                seen=f"examples={examples}, {max(batches)} a step",
                fix=f"examples={least}, or smaller factors",
            )
        self.held_out: torch.Tensor | None = None
        if self.job.evaluate is None:
            kept, self.held_out = hold_out(self.job.length, self.job.seed)
            run.rewind(run.snapshot(), kept=kept)
        self.goes_on = exact and self.held_out is None
        self.start = run.snapshot()
        self.record = self._opened(batches, horizon)
        if path is not None and path.exists():
            self.record = self.record.gone_on(path)
        self.settings = self._settings()

    def _opened(self, batches: tuple[int, ...], horizon: int) -> BranchRecord:
        run, by_evaluate = self.run, self.held_out is None
        race = Race(
            metric="evaluate" if by_evaluate else "held-out loss",
            goal=self.job.goal if by_evaluate else "min",
            start=metric_of(run, self.held_out),
            target=None,
            lanes=(),
            seconds=0.0,
        )
        noise = measure_noise(
            run,
            group_size=self.own,
            micro_batch=self.own,
            generator=torch.Generator().manual_seed(self.job.seed),
        )
        return BranchRecord(
            name=self.job.name,
            examples=run.examples,
            batch_size=self.own,
            lr=run.lr or math.nan,
            horizon=horizon,
            batch_sizes=batches,
            noise=noise,
            race=race,
        )

    def _settings(self) -> list[Setting]:
        """Every batch at every rate; their time is examples."""
        kind = kinds_of(self.run.optimizer)[0]
        warn_of_unknown([kind])
        settings = []
        for batch in self.record.batch_sizes:
            decoupled = kind.decoupled
            scaling = scaling_for(
                kind.family, self.own, batch, decoupled_decay=decoupled
            )
            settings += [
                Setting(
                    batch_size=batch,
                    micro_batch=min(batch, self.own),
                    lr=self.record.lr * scaling.lr * rate,
                    lr_factor=rate,
                    scaling=scaling,
                    step_s=float(batch),
                )
                for rate in (RATES if batch > self.own else RATES[:-1])
            ]
        return settings

    def train(self, ends: float, streams: int, phase: Phase) -> None:
        """Stream after stream, until enough is known or there is no more time."""
        for number in range(streams):
            if number >= STREAMS and _width(self._critical()) < NARROW:
                return
            seed = self.job.seed + 1000 * number
            done = sum(lane.seed == seed for lane in self.record.race.lanes)
            for setting in self.settings[done:]:
                phase.update(f"stream {number + 1}, B = {setting.batch_size}")
                clock = time.monotonic()
                lane = self._branch(setting, seed, ends)
                if lane is None:
                    return
                race = self.record.race
                race = dataclasses.replace(
                    race,
                    lanes=(*race.lanes, lane),
                    seconds=race.seconds + time.monotonic() - clock,
                )
                self.record = dataclasses.replace(self.record, race=race)
                if self.path is not None:
                    self.record.save(self.path)

    def _branch(self, setting: Setting, seed: int, ends: float) -> Lane | None:
        """One branch; None where time ran out on it."""
        lane = LaneRun(setting, seed)
        if self.goes_on and seed == self.job.seed:  # on with the run's own stream
            self.run.rewind(self.start)
            set_up(self.run, setting)
            lane.state = self.run.snapshot()
        train_lane(
            self.run,
            self.start,
            lane,
            self.record.horizon,
            held_out=self.held_out,
            metric_s=EVALUATE_SHARE * self.record.horizon / EVALUATIONS,
            met=lambda metric: False,
            late=lambda: time.monotonic() > ends,
        )
        whole = lane.seconds + setting.batch_size > self.record.horizon
        return lane.lane() if whole or lane.end != "time" else None

    def _critical(self) -> Estimate:
        """N of the law of batch and rate, fitted to all whole streams."""
        power, spread = POWERS[kinds_of(self.run.optimizer)[0].family]
        prior = RatePrior(
            batch_size=self.own,
            lr=self.record.lr,
            noise=math.log(self.own),
            noise_spread=BELIEVED,
            growth=GROWTH,
            growth_spread=GROWTH_SPREAD,
            power=power,
            power_spread=spread,
            lr_spread=LR_SPREAD,
        )
        lanes = sum(self.record.of_streams(len(self.settings)), ())
        race = dataclasses.replace(self.record.race, lanes=lanes)
        return fit_rate_law(passages_of(race), prior).critical_batch

    def probe(self) -> BranchProbe:
        """What the branches say by now."""
        record, race = self.record, self.record.race
        streams, done = record.of_streams(len(self.settings)), len(race.lanes)
        if len(streams) < LEAST_STREAMS:
            every = LEAST_STREAMS * len(self.settings)
            need_s = max(race.seconds, 1.0) / max(done, 1) * (every - done)
            raise UnidentifiedError(
                "too few branches were trained to compare them",
                seen=f"{done} of {every}, {record.horizon:,} examples each",
                why="every batch is tried on two streams at the least",
                fix=f"a budget of some {show_seconds(need_s)} more",
            )
        sign = 1.0 if race.goal == "min" else -1.0
        penalties = penalties_of(streams, self.own, record.horizon, sign=sign)
        critical, noise = self._critical(), record.noise.noise_scale
        length = self.job.run_examples
        return BranchProbe(
            examples=record.examples,
            run_share=None if length is None else record.examples / length,
            batch_size=self.own,
            lr=record.lr,
            critical_batch=critical,
            noise_scale=noise,
            calibration=_ratio(critical, noise),
            largest_without_loss=largest_without_loss(penalties, self.own),
            penalties=penalties,
            horizon=record.horizon,
            streams=len(streams),
            trained=sum(x.steps[-1] * x.batch_size for x in race.lanes if x.steps),
            seconds=race.seconds,
            decided=critical.n > 0 and _width(critical) < DECIDED,
        )


def _width(estimate: Estimate) -> float:
    return estimate.high / estimate.low


def _ratio(above: Estimate, below: Estimate) -> Estimate | None:
    """One over another, independent and about log-normal; None if either is unknown."""
    if not (above.n and below.low > 0 and below.bounded):
        return None
    low, middle, high = (math.log(x) for x in (above.low, above.value, above.high))
    least, mean, most = (math.log(x) for x in (below.low, below.value, below.high))
    return Estimate(
        value=math.exp(middle - mean),
        low=math.exp(middle - mean - math.hypot(middle - low, most - mean)),
        high=math.exp(middle - mean + math.hypot(high - middle, mean - least)),
        n=above.n,
        method="branches over gradients",
    )
