"""What a job came to at several batch sizes: its runs, and their paired differences."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rightbatch.core.estimate import Estimate
from rightbatch.noise.statistics.moments import mean_estimate

Budget = Literal["epochs", "updates", "loss"]
Setting = tuple[Budget, int, str]  # budget, batch size, rule of the rate
TITLES: dict[Budget, str] = {
    "epochs": "equal epochs",
    "updates": "equal updates",
    "loss": "matched loss",
}
KEPT = "none"  # the rule of a learning rate that stays
ALIKE = 1e-6  # seeds' numbers so much apart over their mean are one [assumed]
LATE, LEAST_LATE = 4, 5  # the last 1/4 of a run, and fewest losses in it [assumed]


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedRun:
    """One run, to the end of its budget.

    Attributes:
        budget: What was alike for all batches at the end.
        batch_size: Examples per update.
        rule: How the rate followed from the job's batch; ``"none"``: it stayed.
        lr: Of the first param group, before any schedule of it.
        seed: Of initial weights and of the order of examples.
        updates: Made.
        train_loss: On a fixed probe set of the training data, in eval mode.
        held_out: The job's ``evaluate``.
        fluctuation: See `fluctuation_of`; None: the run was too short.
        end: ``"not reached"``: the matched loss was not, by as many updates as the
            smallest batch made. ``"diverged"``: not finite, or worse than the start.
        course: Updates, training loss and ``evaluate`` along it.
        sharpness: Largest eigenvalue of the training loss; at matched loss only.
        trace: Of the Hessian; at matched loss only.
    """

    budget: Budget
    batch_size: int
    rule: str
    lr: float
    seed: int
    updates: int
    train_loss: float
    held_out: float
    fluctuation: float | None
    end: Literal["done", "not reached", "diverged"]
    course: tuple[tuple[int, float, float], ...] = ()
    sharpness: float | None = None
    trace: float | None = None

    @property
    def setting(self) -> Setting:
        """What its repeats share."""
        return self.budget, self.batch_size, self.rule

    @property
    def gap(self) -> float:
        """Held-out minus training loss."""
        return self.held_out - self.train_loss


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Runs of a job at several batch sizes, under several budgets.

    Attributes:
        job: Its name.
        goal: Of ``evaluate``: ``"min"`` or ``"max"``.
        epochs: That a run of equal epochs passes over the data.
        seeds: Runs of each setting that were asked for.
        start_train_loss: Before the first update, first seed.
        start_held_out: The job's ``evaluate`` there.
        same_quantity: Whether ``evaluate`` starts as the training loss does; else it is
            another quantity, and their gap means nothing.
        level: The training loss matched; None: none was.
        runs: All of them, also those that diverged.
        interrupted: Whether Ctrl-C ended it before all was trained.
        no_sharpness: Why runs at matched loss have none; empty: they do, or it was not
            asked for.
    """

    job: str
    goal: Literal["min", "max"]
    epochs: float
    seeds: int
    start_train_loss: float
    start_held_out: float
    same_quantity: bool
    level: float | None
    runs: tuple[ComparedRun, ...]
    interrupted: bool = False
    no_sharpness: str = ""

    @property
    def budgets(self) -> set[str]:
        """Those that anything was trained for."""
        return {run.budget for run in self.runs}

    @property
    def smallest(self) -> int:
        """The smallest batch: what the others are compared with."""
        return min(run.batch_size for run in self.runs)

    @property
    def gained(self) -> float:
        """The most that ``held_out`` moved from the start in any run."""
        ends = [run.held_out for run in self.runs if run.end == "done"]
        return max((abs(end - self.start_held_out) for end in ends), default=0.0)

    @property
    def settings(self) -> list[Setting]:
        """Every budget, batch and rule, in the order in which they were trained."""
        return list(dict.fromkeys(run.setting for run in self.runs))

    def of(self, setting: Setting) -> list[ComparedRun]:
        """The runs of a setting, by seed; the job's own batch is alike by any rule."""
        kept = (*setting[:2], KEPT)
        runs = [run for run in self.runs if run.setting == setting]
        return runs or [run for run in self.runs if run.setting == kept]

    def compared(self, budget: Budget) -> list[Setting]:
        """Every larger batch by each rule that the smallest one was trained by."""
        here = [setting for setting in self.settings if setting[0] == budget]
        rules = [rule for _, size, rule in here if size == self.smallest]
        if rules == [KEPT]:  # the smallest is the job's own
            return [setting for setting in here if setting[1] > self.smallest]
        sizes = dict.fromkeys(size for _, size, _ in here if size > self.smallest)
        pairs: list[Setting] = [(budget, b, rule) for b in sizes for rule in rules]
        return [pair for pair in pairs if self.of(pair)]

    def mean(self, setting: Setting, name: str) -> Estimate | None:
        """Of a number of the runs that were "done", with Student's 95 % interval."""
        if name == "gap" and not self.same_quantity:
            return None
        return _mean(getattr(r, name) for r in self.of(setting) if r.end == "done")

    def difference(self, setting: Setting) -> Estimate | None:
        """How ``held_out`` differs from the smallest batch's by the same rule.

        Paired by seed, with Student's 95 % interval, unbounded where all differ by one
        number (such as one example of a small set); None for that batch itself, and
        where no seed has two runs that were "done".
        """
        budget, batch_size, rule = setting
        if batch_size == self.smallest:
            return None
        small = self.of((budget, self.smallest, rule))
        before = {run.seed: run.held_out for run in small if run.end == "done"}
        return _mean(
            run.held_out - before[run.seed]
            for run in self.of(setting)
            if run.end == "done" and run.seed in before
        )


def fluctuation_of(losses: Sequence[float]) -> float | None:
    """How much the loss of single updates, each of its own batch, fluctuates late.

    The standard deviation about a straight line over the last quarter of a run; None
    with fewer than 5 losses there.

    Example:
        >>> fluctuation_of([9.0] * 90 + [float(9 - i) for i in range(30)]) < 1e-9
        True
    """
    late = np.asarray(losses[-max(len(losses) // LATE, 1) :], float)
    if len(late) < LEAST_LATE:
        return None
    places = np.arange(len(late)) - (len(late) - 1) / 2
    rest = late - late.mean() - places * (places @ late) / (places @ places)
    return math.sqrt(float(rest @ rest) / (len(late) - 2))


def _mean(values: Iterable[float | None]) -> Estimate | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    n, mean = len(known), float(np.mean(known))
    variance = float(np.var(known, ddof=1)) / n if n > 1 else math.inf
    if np.ptp(known) <= ALIKE * abs(mean):  # tells no scatter
        variance = math.inf
    return mean_estimate(mean, variance, samples=n, method="seeds, Student's t")
