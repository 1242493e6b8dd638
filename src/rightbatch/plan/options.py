"""Every batch worth considering, what the laws predict for it, and what is allowed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rightbatch.core.errors import SettingError, UnidentifiedError
from rightbatch.core.estimate import Estimate
from rightbatch.measure.measurements import Measurements
from rightbatch.plan.laws import Laws
from rightbatch.plan.objectives import Energy, Examples, Objective

BEYOND = 8  # batches are considered up to so many times the largest timed [assumed]
MEMORY_SHARE = 0.9  # of the free memory may be planned with [assumed]


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One batch size, split for the machine, with predictions against the baseline.

    Attributes:
        batch_size: B = micro_batch * accumulation.
        micro_batch: Examples in memory at once, over all ranks.
        accumulation: Micro-batches per optimizer step.
        lr: The learning rate that the laws hold best for it; today's for the baseline.
        step_time_s: Predicted time of one optimizer step.
        peak_memory_bytes: Predicted peak, None where memory was not measured.
        steps: Optimizer steps to the same result, over the baseline's.
        examples: Examples to the same result, over the baseline's.
        time: Time to the same result, over the baseline's.
        seconds: Time to the target, where a run has reached it.
        energy: Energy to the same result, over the baseline's, where it was measured.
    """

    batch_size: int
    micro_batch: int
    accumulation: int
    lr: float
    step_time_s: Estimate
    peak_memory_bytes: int | None
    steps: Estimate
    examples: Estimate
    time: Estimate
    seconds: Estimate | None
    energy: Estimate | None = None


def predict(
    laws: Laws, batch_size: int, limit_bytes: float | None, lr: float | None = None
) -> Option | None:
    """Everything the laws say of one batch at a rate; None if no split of it fits.

    Args:
        laws: Fitted to measurements.
        batch_size: The batch.
        limit_bytes: Memory it has to fit in; None: any.
        lr: Learning rate; default the best by the laws.
    """
    split = laws.split(batch_size, limit_bytes)
    baseline = laws.split(laws.baseline, None)
    if split is None:
        return None
    assert baseline is not None, "without a limit every batch has a split"
    lr = laws.rate.best_lr(batch_size) if lr is None else lr
    by_fit, by_draw = laws.relative_steps(batch_size, lr)

    def step_s(draw: int | None) -> float:
        return laws.time.step_seconds(*split, draw)

    def steps(draw: int | None) -> float:
        return by_fit if draw is None else float(by_draw[draw])

    def times(draw: int | None) -> float:
        return steps(draw) * step_s(draw) / laws.time.step_seconds(*baseline, draw)

    def energies(draw: int | None) -> float:
        assert laws.energy is not None
        joules = laws.energy.joules(*split, draw)
        return steps(draw) * joules / laws.energy.joules(*baseline, draw)

    def seconds(draw: int | None) -> float:
        assert laws.steps_to_target is not None
        return steps(draw) * laws.steps_to_target * step_s(draw)

    def estimate(f: Callable[[int | None], float], unit: str = "") -> Estimate:
        return Estimate.from_draws(
            f(None),
            [f(draw) for draw in range(len(by_draw))],
            unit=unit,
            n=laws.rate.critical_batch.n,
            method=f"{laws.time.kind} law and law of steps, joint draws",
        )

    return Option(
        batch_size=batch_size,
        micro_batch=split[0],
        accumulation=split[1],
        lr=lr,
        step_time_s=estimate(step_s, "s"),
        peak_memory_bytes=round(laws.memory.peak(split[0])) if laws.memory else None,
        steps=estimate(steps),
        examples=estimate(lambda draw: steps(draw) * batch_size / laws.baseline),
        time=estimate(times),
        seconds=estimate(seconds, "s") if laws.steps_to_target else None,
        energy=estimate(energies) if laws.energy is not None else None,
    )


def candidate_batches(laws: Laws, examples: int) -> list[int]:
    """Powers of two on every rank, and today's batch.

    The optimum is too flat to need finer steps. What is normalised together today is
    in the place of one example; a loss that compares examples has batches that were
    timed at once only.
    """
    top = min(examples, BEYOND * max(laws.time.largest, laws.baseline))
    if laws.coupled == "loss":
        top = min(top, laws.time.largest)
    least = laws.time.smallest
    unit = laws.baseline if laws.coupled == "normalization" else laws.world_size
    powers = [unit * 2**i for i in range(top.bit_length())]
    return sorted({*(b for b in powers if least <= b <= top), laws.baseline})


def memory_limit(measurements: Measurements, memory_bytes: float | None) -> float:
    """Bytes a step may take: as asked for, or 90 % of what was free.

    Raises:
        SettingError: What is asked for is not positive.
    """
    if memory_bytes is None:
        return MEMORY_SHARE * measurements.machine.memory_bytes
    if memory_bytes <= 0:
        raise SettingError("memory must be positive", seen=f"{memory_bytes} bytes")
    return memory_bytes


def options_within(laws: Laws, examples: int, limit_bytes: float) -> tuple[Option, ...]:
    """Every batch worth considering of which a split fits in memory, by size.

    Raises:
        SettingError: Not even a single example fits.
    """
    sizes = candidate_batches(laws, examples)
    options = tuple(o for b in sizes if (o := predict(laws, b, limit_bytes)))
    if options:
        return options
    assert laws.memory is not None, "only a memory law can leave no option"
    raise SettingError(
        "not even one example at a time fits in the memory allowed",
        seen=f"{laws.memory.peak(1) / 2**20:.1f} MiB needed at micro-batch 1, "
        f"{limit_bytes / 2**20:.1f} MiB allowed",
        why="every larger micro-batch needs more",
        fix="--memory with more than that",
    )


def within_deadline(
    options: Sequence[Option], deadline_s: float | None
) -> Sequence[Option]:
    """The options that reach the target in time.

    Raises:
        SettingError: The deadline is not positive.
        UnidentifiedError: How long a run takes is not known, or no option is fast
            enough.
    """
    if deadline_s is None:
        return options
    if deadline_s <= 0:
        raise SettingError("the deadline must be positive", seen=f"{deadline_s} s")
    timed = [(o, o.seconds) for o in options if o.seconds is not None]
    if not timed:
        raise UnidentifiedError(
            "the deadline cannot be judged: how long a run takes is not known",
            seen="no measuring run reached a target within the budget",
            why="gradient noise shows how batches compare, not how far the target is",
            fix="a Job with evaluate= and target=, and a larger --budget",
        )
    kept = [o for o, seconds in timed if seconds.value <= deadline_s]
    if not kept:
        fastest, seconds = min(timed, key=lambda pair: pair[1].value)
        raise UnidentifiedError(
            "no batch size meets the deadline",
            seen=f"the fastest, B = {fastest.batch_size}, needs {seconds} of "
            f"{deadline_s:g} s",
            why="the target, not the batch, sets the least time on this machine",
            fix="a later deadline, or a faster machine",
        )
    return kept


def cost(option: Option, objective: Objective) -> float:
    """What the objective counts, over the baseline's.

    Money is a constant price times time on one machine; energy is as measured, or a
    constant power times time where there was no meter.
    """
    if isinstance(objective, Energy) and option.energy is not None:
        return option.energy.value
    if isinstance(objective, Examples):
        return option.examples.value
    return option.time.value


def best_option(options: Sequence[Option], objective: Objective) -> Option:
    """The option of least cost; for `Examples` the fastest of those about as few."""
    least = min(cost(o, objective) for o in options)
    if isinstance(objective, Examples):
        most = (1 + objective.tolerance) * least
        few = [o for o in options if o.examples.value <= most]
        return min(few, key=lambda o: o.time.value)
    return min(options, key=lambda o: cost(o, objective))
