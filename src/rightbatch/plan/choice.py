"""Choosing batch and rate: the best of the race; without one, the best by the laws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rightbatch.core.estimate import Estimate
from rightbatch.fit.rate_law import NOISE
from rightbatch.fit.standings import luck, standings_of
from rightbatch.measure.measurements import Measurements
from rightbatch.plan.evidence import LEAST_ADVICE, Evidence, evidence_of
from rightbatch.plan.laws import Laws, laws_of
from rightbatch.plan.objectives import Energy, Examples, Objective, Time, no_energy
from rightbatch.plan.options import (
    Option,
    best_option,
    memory_limit,
    options_within,
    predict,
    within_deadline,
)
from rightbatch.plan.raced import Raced, Standing, raced_of, unit_costs
from rightbatch.schedules.scaling import Scaling, scaling_for

FLAT = 1.10  # batches within 10 % of the best count as equally good [assumed]
# A choice is sure when, in 9 of 10 draws of all that is uncertain, it costs at most so
# much more than the best of what was raced. [calibrated: docs/benchmarks.md]
TOLERATED, SURE = 1.35, 0.9
# Runs of the choice that must have got to the last level, and their share of all its
# runs; and settings that must have been tried. [assumed]
LEAST_RUNS, LEAST_ARRIVE, LEAST_TRIED = 2, 0.75, 6
# Chance that the choice arrives in less than half of its runs. [assumed]
MOST_LUCK = 0.05
WORTH = 0.97  # a change is told only where it surely saves 3 % at the least [assumed]
# Scatter of a ratio of whole runs beyond that of streams: other initial weights, and
# the law of step time. Standard deviation of the log. [measured: benchmarks/truth]
BEYOND = 0.15
NEAR_RATE = 2.0  # a rate within so much of the best tells how good a batch is [assumed]
TRIED_FROM_LAWS = 1.30  # laws and runs differ where they exclude each other by so much


@dataclass(frozen=True)
class Choice:
    """Batch and rate, everything they were chosen from, and how sure the choice is.

    Attributes:
        measurements: What was measured.
        laws: The laws fitted to it.
        objective: What was to be least.
        options: Every batch that fits, at the best rate by the laws, in order of size.
        chosen: The one taken, at the rate taken.
        baseline: Today's batch and rate, even where they do not fit.
        by_laws: The option that the laws alone hold best.
        raced: What the race found, if it found anything.
        gain: What the choice costs over today's, by race and laws together.
        flat: Smallest and largest batch as good within 10 %, each at its best rate.
        regret: What the choice costs over the best raced, at the 90th percentile.
        contradiction: Where runs and laws exclude each other, in words; else empty.
        evidence: How far the race went.
        scaling: How the optimizer's numbers follow from today's to the batch.
        limit_bytes: Memory the options had to fit in.
        deadline_s: Seconds to the target they had to keep, if any.
    """

    measurements: Measurements
    laws: Laws
    objective: Objective
    options: tuple[Option, ...]
    chosen: Option
    baseline: Option
    by_laws: Option
    raced: Raced | None
    gain: Estimate
    flat: tuple[int, int]
    regret: float
    contradiction: str
    evidence: Evidence
    scaling: Scaling
    limit_bytes: float
    deadline_s: float | None

    @property
    def stays(self) -> bool:
        """Whether today's setting is kept."""
        job = self.measurements.job
        return (self.chosen.batch_size, self.chosen.lr) == (job.batch_size, job.lr)

    @property
    def doubts(self) -> tuple[str, ...]:
        """What keeps the choice from being decided, in words: empty, if nothing does.

        Laws alone are worth trying, never a verdict: a race has to prove it.
        """
        if self.raced is None:
            return ("no race has proven it",)
        untimed = f"no step of more than {self.laws.time.largest} examples was timed"
        found = (
            self.contradiction,
            untimed if self.unseen else "",
            self._short,
            self._fails,
            self._unsearched,
            self._rivalled,
        )
        return tuple(doubt for doubt in found if doubt)

    @property
    def decided(self) -> bool:
        """Whether the race leaves no doubt."""
        return not self.doubts

    @property
    def unseen(self) -> bool:
        """Whether what larger batches cost is a guess: none larger was ever timed."""
        largest, job = self.laws.time.largest, self.measurements.job
        more = min(2 * job.batch_size, job.examples)
        fits = self.laws.split(more, self.limit_bytes) is not None
        return largest < more and fits and self.chosen.batch_size >= largest

    @property
    def _short(self) -> str:
        """Where the job has a target, nothing short of it counts."""
        job, share = self.measurements.job, self.evidence.share
        if job.target is not None and share < 1.0:
            return "nothing came to the target"
        if not self.evidence.known:
            return "how long a run is was not said"
        return "" if self.evidence.enough else "so little of a run proves nothing"

    @property
    def _fails(self) -> str:
        """One lucky run near the edge of divergence does not count."""
        standing = self.standing
        if standing is None:
            return "it was not run itself"
        if standing.diverged:
            return f"{standing.diverged} of its {standing.lanes} runs diverged"
        tries = standing.runs + standing.failed
        times = "once" if standing.runs == 1 else f"{standing.runs} times"
        seen = f"it got there {times} in {'one run' if tries == 1 else f'{tries} runs'}"
        if standing.runs < max(LEAST_RUNS, LEAST_ARRIVE * tries):
            return seen
        standings = self.raced.standings if self.raced else ()
        runs, failed = ([getattr(s, n) for s in standings] for n in ("runs", "failed"))
        if luck(runs, failed, standings.index(standing)) <= MOST_LUCK:
            return ""
        return f"{seen}, where others often did not"

    @property
    def _unsearched(self) -> str:
        """Enough must have been tried, at higher and at lower rates."""
        standings = () if self.raced is None else self.raced.standings
        tried = [s.lr for s in standings if s.lanes]
        if len(tried) < LEAST_TRIED:
            return f"only {len(tried)} settings were tried"
        missing = [
            side
            for side, seen in (
                ("higher", max(tried) > self.chosen.lr),
                ("lower", min(tried) < self.chosen.lr),
            )
            if not seen
        ]
        return f"no {missing[0]} learning rate was tried" if missing else ""

    @property
    def _rivalled(self) -> str:
        """Something else may be much better; or today's, as good."""
        if self.regret > TOLERATED:
            often = f"in one case of {round(1 / (1 - SURE))}"
            return f"{often} something else is {self.regret:.2g} x better or more"
        if not self.stays and self.gain.high >= 1:
            return "today's may be as good"
        return ""

    @property
    def standing(self) -> Standing | None:
        """The choice's own in the race."""
        setting = self.chosen.batch_size, self.chosen.lr
        standings = () if self.raced is None else self.raced.standings
        own = (s for s in standings if (s.batch_size, s.lr) == setting)
        return next(own, None)


def choose(
    measurements: Measurements,
    objective: Objective | None = None,
    *,
    deadline_s: float | None = None,
    memory_bytes: float | None = None,
    rule: str = "auto",
) -> Choice:
    """Choose batch, split and learning rate from measurements; measure nothing.

    Args:
        measurements: With a race, the best of it is taken; without, the laws' best.
        objective: What is to be least; default `Time`.
        deadline_s: Seconds to the target that must not be exceeded.
        memory_bytes: Bytes a step may take; default 90 % of what was free.
        rule: How the optimizer's other numbers follow, see
            `schedules.scaling.scaling_for`.

    Raises:
        SettingError: A limit is not positive, or no batch fits in memory.
        UnidentifiedError: Something needed was not measured, the deadline cannot be
            judged because no run has reached the target, or no batch keeps it.
    """
    objective = objective or Time()
    job = measurements.job
    limit = memory_limit(measurements, memory_bytes)
    laws = laws_of(measurements)
    if isinstance(objective, Energy) and objective.watts is None and not laws.energy:
        raise no_energy("none was measured")
    options = options_within(laws, job.examples, limit)
    baseline = predict(laws, laws.baseline, None, laws.baseline_lr)
    assert baseline is not None, "today's batch was run, so it has a split"
    allowed = within_deadline(options, deadline_s)
    by_laws = best_option(allowed, objective)
    evidence = evidence_of(measurements, laws)
    raced = raced_of(measurements, laws, objective, limit)
    spread = math.hypot(BEYOND, evidence.shortfall)
    least, place = _least_by_law(laws, allowed, objective), None
    if raced is not None and evidence.share < LEAST_ADVICE:
        place = 0 if laws.baseline in {o.batch_size for o in allowed} else None
    elif raced is not None:
        place = _best_raced(raced, allowed, spread, objective, least, evidence)
    if raced is None or place is None:
        # Where a race got nowhere, the laws that it was to prove are no advice; nor
        # are they where today's fits and they gain next to nothing.
        useless = measurements.race is not None or (
            _gain_by_laws(by_laws, objective).value > WORTH
            and laws.split(laws.baseline, limit)
            == (baseline.micro_batch, baseline.accumulation)
        )
        stays = useless and laws.baseline in {o.batch_size for o in allowed}
        chosen, regret, contradiction = baseline if stays else by_laws, math.inf, ""
        gain = _gain_by_laws(chosen, objective)
    else:
        standing = raced.standings[place]
        spread = math.hypot(spread, _of_step_time(laws, standing, objective))
        option = predict(laws, standing.batch_size, limit, standing.lr)
        chosen = baseline if place == 0 or option is None else option
        gain = _gain(raced, place, spread)
        regret = _regret(raced, place, least, evidence.shortfall)
        contradiction = _contradiction(measurements, laws, raced, place)
    return Choice(
        measurements=measurements,
        laws=laws,
        objective=objective,
        options=options,
        chosen=chosen,
        baseline=baseline,
        by_laws=by_laws,
        raced=raced,
        gain=gain,
        flat=_flat(laws, allowed, chosen, objective),
        regret=regret,
        contradiction=contradiction,
        evidence=evidence,
        scaling=scaling_of(measurements, laws, chosen.batch_size, rule),
        limit_bytes=limit,
        deadline_s=deadline_s,
    )


def scaling_of(
    measurements: Measurements, laws: Laws, batch_size: int, rule: str = "auto"
) -> Scaling:
    """How the job's optimizer follows to a batch; by the noise that was expected.

    A race goes by this too, before it begins: what is raced is what is trained.
    """
    return scaling_for(
        measurements.job.family,
        laws.baseline,
        batch_size,
        rule=rule,
        noise_scale=math.exp(laws.rate.prior.noise),
        decoupled_decay=measurements.job.decoupled_decay,
    )


def _best_raced(
    raced: Raced,
    allowed: Sequence[Option],
    spread: float,
    objective: Objective,
    least: np.ndarray,
    evidence: Evidence,
) -> int | None:
    """Place of the best setting; today's (0) where nothing is surely better."""
    sizes = {option.batch_size for option in allowed}
    means = raced.means
    fits = np.array([s.batch_size in sizes for s in raced.standings])
    means = np.where(fits, means, math.inf)
    if not np.isfinite(means).any():
        return None
    best = int(means.argmin())
    if isinstance(objective, Examples):  # of those about as few, the fastest
        few = means <= means[best] + math.log1p(objective.tolerance)
        seconds = [s.seconds.value for s in raced.standings]
        best = int(np.where(few, seconds, math.inf).argmin())
    stays = (
        _gain(raced, best, spread).high > WORTH
        and _regret(raced, 0, least, evidence.shortfall) <= TOLERATED
    )
    return 0 if stays and fits[0] and math.isfinite(means[0]) else best


def _of_step_time(laws: Laws, standing: Standing, objective: Objective) -> float:
    """What the law of step time leaves open of a ratio: scatter of its log."""
    if isinstance(objective, Examples):
        return 0.0
    split, today = (
        (micro, batch // micro)
        for batch, micro in (
            (standing.batch_size, standing.micro_batch),
            (laws.baseline, (laws.split(laws.baseline, None) or (laws.baseline, 1))[0]),
        )
    )
    ratio = laws.time.time_ratio(*split, *today)
    return math.log(ratio.high / ratio.low) / 3.92


def _gain(raced: Raced, place: int, spread: float) -> Estimate:
    """Cost of a setting over today's, whole runs, with a scatter of the log beside."""
    if place == 0:
        return Estimate.exact(1.0)
    logs = raced.log_costs[:, place] - raced.log_costs[:, 0]
    logs = logs + spread * np.random.default_rng(1).standard_normal(len(logs))
    return Estimate.from_draws(
        math.exp(float(np.median(logs))),
        np.exp(logs).tolist(),
        unit="",
        n=raced.lanes,
        method="race, with the law of batch and rate",
    )


def _gain_by_laws(option: Option, objective: Objective) -> Estimate:
    if isinstance(objective, Examples):
        return option.examples
    if isinstance(objective, Energy) and option.energy is not None:
        return option.energy
    return option.time


def _regret(
    raced: Raced, place: int, least_by_law: np.ndarray, shortfall: float
) -> float:
    """What a setting costs over the best there may be, at the 90th percentile of draws.

    That is the best of what got to the last level, or what the law holds
    possible at another batch and rate: a race that has not looked there has not
    decided. Where only a part of a run was raced, ``shortfall`` is the scatter which
    that adds to the log.
    """
    reached = [i for i, s in enumerate(raced.standings) if s.runs]
    if place not in reached:
        return math.inf
    least = np.minimum(raced.log_costs[:, reached].min(1), least_by_law)
    logs = raced.log_costs[:, place] - least
    logs = logs + shortfall * np.random.default_rng(2).standard_normal(len(logs))
    return math.exp(float(np.quantile(logs, SURE)))


def _least_by_law(
    laws: Laws, allowed: Sequence[Option], objective: Objective
) -> np.ndarray:
    """Log cost of the best batch at its best rate, by every draw of the law."""
    noise = laws.rate.draws[:, NOISE, None]
    batches = np.array([float(o.batch_size) for o in allowed])
    splits = [(o.micro_batch, o.accumulation) for o in allowed]
    costs = unit_costs(laws, objective, splits)
    steps = laws.rate.level + np.logaddexp(0.0, noise - np.log(batches))
    return (steps + np.log(costs)).min(1)


def _contradiction(
    measurements: Measurements, laws: Laws, raced: Raced, place: int
) -> str:
    """Where the choice's own runs and the law's prediction exclude each other."""
    passages, race = laws.passages, measurements.race
    if place == 0 or passages is None or race is None:
        return ""
    chosen, today = raced.standings[place], raced.standings[0]
    if not today.runs:
        return ""
    logs = [
        [
            math.log(p.steps)
            for p in passages.deepest
            if p.reached and (p.batch_size, p.lr) == (s.batch_size, s.lr)
        ]
        for s in (chosen, today)
    ]
    seen = float(np.mean(logs[0]) - np.mean(logs[1]))
    batches = np.array([float(chosen.batch_size), float(today.batch_size)])
    drawn = laws.rate.log_steps_drawn(batches, np.array([chosen.lr, today.lr]))
    said = drawn[:, 0] - drawn[:, 1]
    spread = 2 * math.hypot(float(said.std()), math.sqrt(2) * laws.rate.scatter)
    off = abs(seen - float(said.mean()))
    if off <= max(spread, math.log(TRIED_FROM_LAWS)):
        return ""
    return (
        f"at B = {chosen.batch_size} and lr {chosen.lr:.3g} the runs took "
        f"{math.exp(seen):.2g} of today's steps, the law fitted to all of them says "
        f"{math.exp(float(said.mean())):.2g}"
    )


def _flat(
    laws: Laws, allowed: Sequence[Option], chosen: Option, objective: Objective
) -> tuple[int, int]:
    """The range of batches around the chosen one within 10 % of the best.

    Each at the best of the rates that a race tried; the best by the laws is one of
    them only where none near it was tried: what a race saw is not talked away.
    """
    tried = (
        {(p.batch_size, p.lr) for p in laws.passages.deepest}
        if laws.passages
        else set()
    )
    settings = sorted(tried)
    for o in allowed:
        rates = [lr for batch_size, lr in tried if batch_size == o.batch_size]
        if not any(o.lr / NEAR_RATE <= lr <= o.lr * NEAR_RATE for lr in rates):
            settings.append((o.batch_size, o.lr))
    costs = standings_of(laws.rate, laws.passages, settings).draws.mean(0)
    by_batch: dict[int, float] = {}
    steps = {o.batch_size: o for o in allowed}
    for (batch, _), log_steps in zip(settings, costs.tolist(), strict=True):
        if batch in steps:
            option = steps[batch]
            unit = option.step_time_s.value
            if isinstance(objective, Examples):
                unit = float(batch)
            by_batch[batch] = min(
                by_batch.get(batch, math.inf), log_steps + math.log(unit)
            )
    best = min(by_batch.values())
    good = {b for b, c in by_batch.items() if c <= best + math.log(FLAT)}
    sizes = sorted(by_batch)
    low = high = chosen.batch_size
    if chosen.batch_size in sizes:
        place = sizes.index(chosen.batch_size)
        for b in reversed(sizes[:place]):
            if b not in good:
                break
            low = b
        for b in sizes[place + 1 :]:
            if b not in good:
                break
            high = b
    return low, high
