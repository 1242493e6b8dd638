"""Whether a larger batch generalises worse on a job: runs alike but for the batch."""

from __future__ import annotations

import contextlib
import math
import timeit
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from torch import nn

from rightbatch.core.errors import NotFiniteError, RightbatchError, SettingError
from rightbatch.core.guards import preserved_rng
from rightbatch.core.progress import Progress
from rightbatch.core.units import show_seconds
from rightbatch.core.whole_number import whole_number
from rightbatch.job.job import Job, run_length
from rightbatch.job.optimizers import first_rate, kinds_of
from rightbatch.landscape.comparison import (
    KEPT,
    TITLES,
    Budget,
    ComparedRun,
    Comparison,
    fluctuation_of,
)
from rightbatch.landscape.hessian import PROBE, drawn
from rightbatch.measure.held_out_loss import held_out_loss
from rightbatch.schedules.scaling import Scaling, apply_scaling, scaling_for
from rightbatch.training.interrupt import Interrupt
from rightbatch.training.run_state import RunState

EPOCHS = 10  # of a run whose length neither job nor caller says [assumed]
# In updates between looks at the training loss; and at evaluate, for the charts.
GROWTH, APART = 1.05, 1.25  # [assumed]
CLOSE = 1.1  # times the level to match, from where every update is looked at [assumed]
# The level that is matched is set by the slowest run, of those that made all but this
# share of the best one's way down: of the rest there is nothing to learn. [assumed]
SHORT = 0.25
ALIKE = 0.1  # evaluate over training loss at the start, if both are the same [assumed]
SEEDS_APART = 1000  # as in a race


class _Scheme(NamedTuple):
    """A batch, how the optimizer's numbers follow to it, and where its runs end."""

    batch_size: int
    scaling: Scaling
    updates: dict[Budget, int]


def compare_batches(
    job: Job,
    batch_sizes: Sequence[int],
    *,
    epochs: float | None = None,
    examples: int | None = None,
    seeds: int = 3,
    rules: Sequence[str] | None = None,
    budgets: Sequence[Budget] = ("epochs", "updates", "loss"),
    level: float | None = None,
    micro_batch: int | None = None,
    sharpness: Callable[[Job, nn.Module], Any] | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Train a job at several batch sizes and compare what they come to.

    For each seed all runs begin with the same weights and read the same stream of
    examples, cut elsewhere. Budgets: ``"epochs"``, the same examples, in whole updates;
    ``"updates"``, as many updates as the smallest batch makes in them; ``"loss"``, each
    until its training loss is at one level. A schedule of the rate goes by examples,
    for the last two by updates. Examples that BatchNorm normalises together grow with
    the batch, unless ``micro_batch`` keeps them.

    Args:
        job: With ``evaluate``.
        batch_sizes: Two or more.
        epochs: Length of a run, or ``examples`` of it; default: the job's, else 10.
        examples: At least the largest batch.
        seeds: Runs of each setting; one gives no interval.
        rules: How the rate follows from the job's batch, see `schedules.scaling`;
            default: ``none``, ``sqrt`` and ``linear`` under SGD, else ``none`` and
            ``auto``.
        budgets: Which of them.
        level: Training loss to match; default: what the slowest run comes to by equal
            updates, those far behind left out, but for the smallest batch at its rate.
        micro_batch: Most examples in memory at once; default: the batch.
        sharpness: Such as `landscape.sharpness`; asked at matched loss only.
        progress: Told of each phase.

    Raises:
        SettingError: The job has no ``evaluate``, or a setting cannot work.
        JobError: The job's own code failed.

    Example:
        >>> import rightbatch as rb
        >>> found = compare_batches(
        ...     rb.load_job("digits"), [64, 256], epochs=1, seeds=2, budgets=["epochs"]
        ... )
        >>> found.settings[1], found.runs[0].updates
        (('epochs', 64, 'sqrt'), 23)

    References:
        Keskar et al. 2017, arXiv:1609.04836; Hoffer et al. 2017, arXiv:1705.08741;
        Shallue et al. 2019, arXiv:1811.03600.
    """
    sizes = sorted({whole_number(size, "a batch size") for size in batch_sizes})
    end = run_length(job.length, examples, epochs) or job.run_examples
    end, progress = end or float(EPOCHS * job.length), progress or Progress()
    _check(job, sizes, budgets, level, end)
    most = min(micro_batch or sizes[-1], sizes[-1])
    runs, seeds = list[ComparedRun](), whole_number(seeds, "seeds")
    no_sharpness = ""
    with Interrupt() as interrupt:

        def trainers() -> Generator[_Trainer]:
            for number in range(seeds):
                seed = job.seed + SEEDS_APART * number
                trainer = _Trainer(replace(job, seed=seed), most, sharpness)
                with contextlib.closing(trainer.run):
                    yield trainer

        with progress.phase("cost", float(len(sizes))) as phase:
            with contextlib.closing(trainers()) as first:
                trainer = next(first)
                schemes = _schemes(trainer.run, sizes, rules, end)
                start = trainer.start_loss, trainer.held_out()
                costs = [trainer.seconds(scheme) for scheme in schemes]
            total = seeds * len(schemes) * len(budgets)
            cost_s = {b: seeds * sum(cost[b] for cost in costs) for b in budgets}
            cost = show_seconds(sum(cost_s.values()))
            phase.summary = f"{total} runs, up to about {cost}"
        for budget in [b for b in TITLES if b in budgets and not interrupt.asked]:
            if budget == "loss" and level is None:
                level = _level(runs, start[0])
            with progress.phase(TITLES[budget], cost_s[budget]) as phase:
                for trainer, scheme in ((t, s) for t in trainers() for s in schemes):
                    phase.update(f"{len(runs)} of {total}, B = {scheme.batch_size}")
                    goal = level if budget == "loss" else None
                    run = trainer.train(scheme, budget, goal, lambda: interrupt.asked)
                    if run is None:
                        break
                    runs.append(run)
                    no_sharpness = trainer.no_sharpness or no_sharpness
                phase.summary = f"{len(runs)} of {total} runs trained"
    likely = abs(start[1] - start[0]) <= ALIKE * abs(start[0])
    return Comparison(
        job=job.name,
        goal=job.goal,
        epochs=end / job.length,
        seeds=seeds,
        start_train_loss=start[0],
        start_held_out=start[1],
        same_quantity=job.goal == "min" and likely,
        level=level if "loss" in budgets else None,
        runs=tuple(runs),
        interrupted=interrupt.asked,
        no_sharpness=no_sharpness,
    )


def _check(
    job: Job,
    sizes: list[int],
    budgets: Sequence[str],
    level: float | None,
    end: float,
) -> None:
    """Refuse what cannot be compared."""
    if job.evaluate is None:
        raise SettingError(
            "comparing batches needs the job's evaluate",
            why="how a run generalises shows on data it has not seen",
            fix="Job(..., evaluate=lambda model: validation_loss(model))",
        )
    if len(sizes) < 2 or sizes[-1] > min(job.length, end):
        raise SettingError(
            "compare two or more batches, none larger than the data set or a run",
            seen=f"{', '.join(map(str, sizes))}; {job.length} and {end:g} examples",
            fix="--compare 16,64,256",
        )
    unmatched = "loss" in budgets and "updates" not in budgets and level is None
    if unmatched or not budgets or not set(budgets) <= set(TITLES):
        raise SettingError(
            f"budgets are some of {', '.join(TITLES)}; loss needs updates too, to find "
            "the loss to match, or a level",
            seen=f"budgets {', '.join(budgets)}; level {level}",
            fix="--at epochs,updates,loss, or --at loss --level 0.1",
        )


def _schemes(
    run: RunState, sizes: list[int], rules: Sequence[str] | None, end: float
) -> list[_Scheme]:
    """Every batch with every rule, once where two come to the same numbers."""
    kind, todays = kinds_of(run.optimizer)[0], run.job.batch_size
    if rules is None:
        rules = (KEPT, "sqrt", "linear") if kind.family == "sgd" else (KEPT, "auto")
    schemes: dict[tuple[float, ...], _Scheme] = {}
    most = math.ceil(end / sizes[0])
    for size in sizes:
        ends: dict[Budget, int] = {"updates": most, "loss": most}
        ends["epochs"] = math.ceil(end / size)
        for rule in (KEPT,) if size == todays else rules:
            scaling = scaling_for(
                kind.family, todays, size, rule=rule, decoupled_decay=kind.decoupled
            )
            numbers = (size, scaling.lr, scaling.beta1, scaling.beta2)
            schemes.setdefault(numbers, _Scheme(size, scaling, ends))
    return list(schemes.values())


def _level(runs: Sequence[ComparedRun], start: float) -> float:
    """The training loss that the slowest run came to, of those not far behind.

    The smallest batch counts wherever it is: without it nothing could be compared.
    """
    lowest = [
        (min(loss for _, loss, _ in run.course), run.setting)
        for run in runs
        if run.budget == "updates" and run.end == "done"
    ]
    best = min((loss for loss, _ in lowest), default=start)
    far, first = best + SHORT * (start - best), runs[0].setting[1:] if runs else ()
    return max((x for x, s in lowest if x <= far or s[1:] == first), default=start)


class _Trainer:
    """All runs of one seed: the same weights and stream, one after the other."""

    def __init__(
        self, job: Job, most: int, sharpness: Callable[[Job, nn.Module], Any] | None
    ) -> None:
        self.most, self.sharpness, self.no_sharpness = most, sharpness, ""
        self.run = RunState.start(job, alone=True)
        self.start = self.run.snapshot()
        probe = min(PROBE, job.length)
        self.probe = drawn(job, probe, "probe", 0)  # one set for all seeds
        self.start_loss = self.train_loss()

    def train_loss(self) -> float:
        """On the probe set, in eval mode."""
        return held_out_loss(self.run, self.probe, self.most)

    def held_out(self) -> float:
        """The job's ``evaluate``."""
        return self.run.on_first(self.run.job.evaluated)

    def begin(self, scheme: _Scheme, budget: Budget, scaled: bool = True) -> None:
        """Put the run at the start, at a scheme's batch and rate."""
        run, size = self.run, scheme.batch_size
        run.rewind(self.start)
        if scaled:
            apply_scaling(run.optimizer, scheme.scaling)
        if run.rate is not None:  # over examples, or over updates
            stretch = scheme.updates[budget] / scheme.updates["epochs"]
            run.follow(run.rate.stretched(stretch))
        run.split(size, min(size, self.most))

    def seconds(self, scheme: _Scheme) -> dict[Budget, float]:
        """What its runs take, from two steps and two looks, at the most."""
        self.begin(scheme, "epochs", scaled=False)
        step_s = min(timeit.repeat(self.run.step, number=1, repeat=2))
        look_s = min(timeit.repeat(self.train_loss, number=1, repeat=2))
        return {
            budget: n * step_s + min(n, 1 / (GROWTH - 1) + math.log(n, GROWTH)) * look_s
            for budget, n in scheme.updates.items()
        }

    def train(
        self,
        scheme: _Scheme,
        budget: Budget,
        level: float | None,
        stop: Callable[[], bool],
    ) -> ComparedRun | None:
        """One run to the end of its budget; None where it was stopped."""
        self.begin(scheme, budget)
        run, last, due = self.run, scheme.updates[budget], 1
        losses: list[float] = []
        course: list[tuple[int, float, float]] = []
        train_loss, matched, over = math.nan, level is None, False
        while not over:
            if stop():
                return None
            try:
                losses.append(run.step().loss)
            except NotFiniteError:
                train_loss = math.nan
                break
            over = len(losses) == last
            close = level is not None and train_loss <= CLOSE * level
            if len(losses) < due and not over and not close:
                continue
            if len(losses) >= due:
                due = max(due + 1, math.ceil(due * GROWTH))
            train_loss = self.train_loss()
            matched |= level is not None and train_loss <= level
            over |= not math.isfinite(train_loss) or (matched and level is not None)
            if over or not course or len(losses) >= APART * course[-1][0]:
                course.append((len(losses), train_loss, self.held_out()))
        held_out = course[-1][2] if math.isfinite(train_loss) else math.nan
        end: Literal["done", "not reached", "diverged"]
        end = "done" if matched else "not reached"
        if not math.isfinite(held_out) or train_loss > self.start_loss:
            end = "diverged"
        sharp = None
        if budget == "loss" and end == "done" and self.sharpness is not None:
            try:
                with preserved_rng():
                    sharp = self.sharpness(run.job, run.network)
            except RightbatchError as error:  # the runs are worth keeping
                self.no_sharpness = error.what
        return ComparedRun(
            budget=budget,
            batch_size=scheme.batch_size,
            rule=scheme.scaling.rule,
            lr=first_rate(run.optimizer) or math.nan,
            seed=run.job.seed,
            updates=len(losses),
            train_loss=train_loss,
            held_out=held_out,
            fluctuation=None if end == "diverged" else fluctuation_of(losses),
            end=end,
            course=tuple(look for look in course if math.isfinite(look[1])),
            sharpness=None if sharp is None else sharp.top.value,
            trace=None if sharp is None else sharp.trace.value,
        )
