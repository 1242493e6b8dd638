"""What a study has found: the best setting, the law of batch and rate, its contours."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float

from rightbatch.core.estimate import Estimate
from rightbatch.core.json_io import read_json, write_json
from rightbatch.core.units import show_number, show_seconds
from rightbatch.fit.rate_law import NOISE, POWER, RATE
from rightbatch.measure.measurements import Race
from rightbatch.plan.choice import Choice
from rightbatch.plan.raced import Standing

FORMAT = "rightbatch/study/1"
OVERHEADS = (0.2, 1.0)  # the contours that are named
FINENESS, REACH = 16, 6  # of their rates: to an octave; octaves from the best rate
Array = Float[np.ndarray, "..."]


@dataclass(frozen=True, slots=True, kw_only=True)
class BestRate:
    """The best learning rate of a batch by the law, and what it leads to.

    Attributes:
        batch_size: Examples per step.
        lr: Of the first param group.
        seconds: To the target at that rate.
        examples: To the target at that rate.
    """

    batch_size: int
    lr: Estimate
    seconds: Estimate
    examples: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Contour:
    """The rates between which a batch costs at most so much more than the least.

    Attributes:
        of: ``"examples"``, of which a batch of one at its best rate takes about the
            fewest; or ``"time"``, which is least at the best batch.
        overhead: 0.2 for 20 % more than the least.
        batch_sizes: Those that have such rates.
        lr_low: The smallest of these for each.
        lr_high: The largest.
    """

    of: Literal["examples", "time"]
    overhead: float
    batch_sizes: tuple[int, ...]
    lr_low: tuple[float, ...]
    lr_high: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Study:
    """Batch and rate to the job's target, as tried and as a law.

    Attributes:
        job: Name of the job.
        spec: How it is loaded.
        race: Every trial as a lane, finished or not, after the measuring run.
        best: The setting expected to be soonest at the target, of those that met it.
        doubts: What keeps that from being proven, as `tune` and ``plan`` see it.
        critical_batch: N of the law: at its best rate a batch of N takes twice the
            fewest examples and twice the fewest steps.
        best_rates: The law at every batch that fits; nothing where no trial has met the
            target.
        contours: Of examples and time, at 20 % and 100 %.
        interrupted: Whether Ctrl-C ended it: trials are still to come.
    """

    job: str
    spec: str
    race: Race
    best: Standing | None
    doubts: tuple[str, ...]
    critical_batch: Estimate
    best_rates: tuple[BestRate, ...]
    contours: tuple[Contour, ...]
    interrupted: bool = False

    def __repr__(self) -> str:
        return f"Study({self.sentences[0]})"

    @property
    def reached(self) -> int:
        """How many trials met the target."""
        return sum(lane.end == "target" for lane in self.race.lanes)

    @property
    def decided(self) -> bool:
        """Whether the best is known beyond doubt."""
        return self.best is not None and not self.doubts

    @property
    def sentences(self) -> tuple[str, ...]:
        """The answer in plain words."""
        trials = f"Of {len(self.race.lanes)} runs {self.reached} came to the target"
        if self.best is None:
            return (f"{trials}.",)
        best, twice = self.best, self.critical_batch
        name = f"B = {best.batch_size:,} at lr {show_number(best.lr)}"
        ends = (best.seconds.value, best.seconds.low, best.seconds.high)
        took, low, high = map(show_seconds, ends)
        few = twice.scale(OVERHEADS[0])
        return (
            f"Soonest at the target: {name}, in {took} of training ({low} to {high}). "
            f"{trials}.",
            *([f"Not sure: {'; '.join(self.doubts)}."] if self.doubts else []),
            f"At its best rate a batch of {few} takes 20% more examples than the "
            f"fewest, one of {twice} twice as many: the critical batch.",
            *(
                f"Within {c.overhead:.0%} of the least time: B from "
                f"{c.batch_sizes[0]:,} to {c.batch_sizes[-1]:,}, each at its best rate."
                for c in self.contours
                if c.of == "time" and c.batch_sizes
            ),
        )

    def save(self, path: str | Path) -> None:
        """Write as JSON, atomically.

        Raises:
            RunFolderError: The folder cannot be written.
        """
        write_json(path, self, FORMAT)

    @classmethod
    def load(cls, path: str | Path) -> Study:
        """Read what `save` wrote.

        Raises:
            RunFolderError: Missing, damaged, or of another format.
        """
        return read_json(path, cls, FORMAT)


def study_of(choice: Choice, *, interrupted: bool = False) -> Study:
    """What the trials show, which are the race of the measurements.

    Args:
        choice: From those measurements.
        interrupted: Whether Ctrl-C ended it: trials are still to come.
    """
    race, passages = choice.measurements.race, choice.laws.passages
    assert race is not None, "a study has trials"
    best, known = None, passages is not None and passages.to_target
    if choice.raced is not None and known:
        best = choice.raced.standings[int(choice.raced.means.argmin())]
    job, doubts = choice.measurements.job, choice.doubts
    if best is not None and best != choice.standing:  # then today's is kept
        doubts = ("today's may be as good",)
    return Study(
        job=job.name,
        spec=job.spec,
        race=race,
        best=best,
        doubts=doubts,
        critical_batch=choice.laws.rate.critical_batch,
        best_rates=_best_rates(choice) if known else (),
        contours=_contours(choice) if known else (),
        interrupted=interrupted,
    )


def _best_rates(choice: Choice) -> tuple[BestRate, ...]:
    law, rates = choice.laws.rate, []
    n, x, p = law.draws[:, [NOISE, RATE, POWER]].T
    today = np.log1p(np.exp(n) / law.prior.batch_size)
    for option in choice.options:
        size = option.batch_size
        lrs = law.prior.lr * np.exp(p * (today - np.log1p(np.exp(n) / size)) - x)
        lr, batch = law.best_lr(size), np.array([float(size)])
        by_fit = law.level + float(law.log_steps(batch, np.array([lr]))[0])
        drawn = law.level + law.log_steps_drawn(batch, np.array([lr]))[:, 0]
        steps = _estimate(math.exp(by_fit), np.exp(drawn), law.runs)
        rates.append(
            BestRate(
                batch_size=size,
                lr=_estimate(lr, lrs, law.runs),
                seconds=steps.scale(option.step_time_s.value, "s"),
                examples=steps.scale(size, "examples"),
            )
        )
    return tuple(rates)


def _estimate(value: float, draws: Array, n: int) -> Estimate:
    method = "law of the trials"
    return Estimate.from_draws(value, draws.tolist(), unit="", n=n, method=method)


def _contours(choice: Choice) -> tuple[Contour, ...]:
    law, options = choice.laws.rate, choice.options
    sizes = np.array([float(option.batch_size) for option in options])
    step_s = np.array([option.step_time_s.value for option in options])
    best = np.array([law.best_lr(size) for size in sizes])
    factors = 2.0 ** (np.arange(-REACH * FINENESS, REACH * FINENESS + 1) / FINENESS)
    lrs = best * factors[:, None]
    steps = np.array([law.log_steps(sizes, row) for row in lrs])
    # B (1 + N/B) is N where B is nothing: the fewest examples, up to the same factor.
    examples = steps + np.log(sizes) - float(law.parameters[NOISE])
    seconds = steps + np.log(step_s)
    found = []
    kinds: tuple[tuple[Literal["examples", "time"], Array], ...]
    kinds = ("examples", examples), ("time", seconds - seconds.min())
    for of, logs in kinds:
        for overhead in OVERHEADS:
            inside = logs <= math.log1p(overhead)
            there = [i for i in range(len(sizes)) if inside[:, i].any()]
            found.append(
                Contour(
                    of=of,
                    overhead=overhead,
                    batch_sizes=tuple(options[i].batch_size for i in there),
                    lr_low=tuple(float(lrs[inside[:, i], i].min()) for i in there),
                    lr_high=tuple(float(lrs[inside[:, i], i].max()) for i in there),
                )
            )
    return tuple(found)
