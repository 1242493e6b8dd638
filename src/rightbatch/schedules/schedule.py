"""Batch schedules: the batch as a function of examples seen, as plain data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from rightbatch.core.errors import SettingError
from rightbatch.core.estimate import Estimate
from rightbatch.core.json_io import to_plain
from rightbatch.core.whole_number import keep_whole_numbers, whole_number
from rightbatch.schedules.megatron import read_stages, write_stages

STEP = 1.1  # a smooth schedule moves the batch in steps of this factor [assumed]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a live schedule follows, measured while the run trains.

    Attributes:
        noise_scale: In examples.
        grad_norm_sq: Squared norm of the true gradient.
        first_grad_norm_sq: The same when it was first known.
    """

    noise_scale: Estimate
    grad_norm_sq: Estimate
    first_grad_norm_sq: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    """The batch that a schedule asks for at one point of a run.

    Attributes:
        batch: Examples per step, before rounding to a possible one.
        low: Where it may lie, given what is not known exactly.
        high: The same, from above.
        rate: Factor on the learning rate, beside what the scaling rule makes of it.
        reason: Why, in words.
    """

    batch: float
    low: float
    high: float
    reason: str
    rate: float = 1.0

    @classmethod
    def exact(cls, batch: int, reason: str, rate: float = 1.0) -> Aim:
        """An aim that follows from the examples seen alone."""
        return cls(batch=batch, low=batch, high=batch, rate=rate, reason=reason)


@dataclass(frozen=True, slots=True)
class Schedule:
    """Base of all schedules: values that print, save and tabulate themselves.

    Attributes:
        live: Whether it follows measurements instead of examples seen alone.
        rule: The scaling rule it means; None: the run's own.
        exact: Whether its batches are meant as they are; others may be rounded to whole
            micro-batches.
        power: How its rate follows such a rounding: by the batch to this power.
    """

    live: ClassVar[bool] = False
    rule: ClassVar[str | None] = None
    exact: ClassVar[bool] = False

    @property
    def power(self) -> float:
        """The rate does not follow, if it only says the batch."""
        return 0.0

    def aim(self, examples: int, reading: Reading | None = None) -> Aim | None:
        """What it asks for now; None where it needs a reading and has none."""
        raise NotImplementedError

    @property
    def start(self) -> int:
        """The batch of the first step."""
        aim = self.aim(0)
        assert aim is not None
        return round(aim.batch)

    def largest(self, examples: float = math.inf) -> int:
        """The largest batch it asks for within so many examples."""
        raise NotImplementedError

    def batch_size(self, examples: int) -> int:
        """Examples per step when so many have been seen.

        Raises:
            SettingError: It follows measurements.
        """
        aim = self.aim(examples)
        if aim is None:
            raise SettingError(
                f"{type(self).__name__} follows what is measured while training",
                why="its batch cannot be told beforehand",
                fix="rb.train(job, schedule=...), or a Controller in your own loop",
            )
        return max(1, round(aim.batch))

    def table(self, examples: int, rows: int = 8) -> str:
        """What it does over a run of so many examples, for people."""
        lines = ["  examples     batch  rate x"]
        for seen in sorted({round(i * examples / (rows - 1)) for i in range(rows)}):
            aim = self.aim(seen)
            if aim is None:
                return f"{self}: decided while training"
            lines.append(f"{seen:>10,}  {round(aim.batch):>8,}  {aim.rate:>6.3g}")
        return "\n".join(lines)

    def to_plain(self) -> dict[str, Any]:
        """For JSON: its kind and its fields."""
        return {"kind": type(self).__name__, **to_plain(self)}


@dataclass(frozen=True, slots=True)
class Constant(Schedule):
    """One batch for the whole run.

    Raises:
        SettingError: The batch is no whole number of examples.

    Example:
        >>> import rightbatch as rb
        >>> rb.schedules.Constant(64).batch_size(10_000)
        64
    """

    exact: ClassVar[bool] = True

    batch: int

    def __post_init__(self) -> None:
        keep_whole_numbers(self, "batch")

    def aim(self, examples: int, reading: Reading | None = None) -> Aim:
        """The one batch."""
        return Aim.exact(self.batch, "constant")

    def largest(self, examples: float = math.inf) -> int:
        """The one batch."""
        return self.batch

    def __str__(self) -> str:
        return f"batch {self.batch:,} throughout"


@dataclass(frozen=True, slots=True)
class Stages(Schedule):
    """A batch for each stage: pairs of examples seen and batch.

    Args:
        stages: ``((0, 64), (50_000, 128))``, increasing from 0.

    Raises:
        SettingError: They do not begin at 0, do not increase, or are no pairs.

    Example:
        >>> import rightbatch as rb
        >>> stages = rb.schedules.Stages(((0, 64), (50_000, 128)))
        >>> stages.batch_size(49_999), stages.batch_size(50_000)
        (64, 128)
    """

    exact: ClassVar[bool] = True

    stages: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        try:
            given = [(start, batch) for start, batch in self.stages]
        except (TypeError, ValueError):
            raise SettingError(
                "stages are pairs of examples seen and batch",
                seen=f"{self.stages!r:.60}",
                fix="Stages(((0, 64), (50_000, 128)))",
            ) from None
        pairs = tuple(
            (
                whole_number(start, "a stage's beginning", least=0),
                whole_number(batch, f"the batch of the stage at {start}"),
            )
            for start, batch in given
        )
        object.__setattr__(self, "stages", pairs)
        starts = [start for start, _ in pairs]
        if not starts or starts[0] != 0 or starts != sorted(set(starts)):
            raise SettingError(
                "stages must begin at 0 examples and increase",
                seen=f"stages begin at {starts}",
                fix="Stages(((0, 64), (50_000, 128)))",
            )

    @classmethod
    def from_megatron(cls, text: str, *, tokens_per_example: int = 1) -> Self:
        """The stages of Megatron-LM's ``--step-batch-size-schedule``.

        Args:
            text: Such as ``"0:768 250B:1536"``; K, M, B and T are powers of ten.
            tokens_per_example: Where the places are in tokens, as they are under
                Megatron-LM's ``--seq-length``: rounded down to whole examples.

        Raises:
            SettingError: It is no such text, or its places do not increase from 0.

        Example:
            >>> import rightbatch as rb
            >>> text = "0:768 250B:1536"
            >>> rb.schedules.Stages.from_megatron(text, tokens_per_example=4096)
            Stages(stages=((0, 768), (61035156, 1536)))
        """
        return cls(read_stages(text, tokens_per_example))

    def to_megatron(self, *, tokens_per_example: int = 1) -> str:
        """The text for Megatron-LM's ``--step-batch-size-schedule``.

        Args:
            tokens_per_example: To write the places in tokens.

        Example:
            >>> import rightbatch as rb
            >>> rb.schedules.Stages(((0, 64), (50_000, 128))).to_megatron()
            '0:64 50K:128'
        """
        return write_stages(self.stages, tokens_per_example)

    def aim(self, examples: int, reading: Reading | None = None) -> Aim:
        """The batch of the stage that so many examples lie in."""
        number = max(i for i, (at, _) in enumerate(self.stages) if at <= examples)
        reason = f"stage {number + 1} of {len(self.stages)}"
        return Aim.exact(self.stages[number][1], reason)

    def largest(self, examples: float = math.inf) -> int:
        """The largest stage that is reached."""
        return max(batch for at, batch in self.stages if at < examples or at == 0)

    def __str__(self) -> str:
        return "batch " + ", ".join(f"{b:,} from {at:,}" for at, b in self.stages)


@dataclass(frozen=True, slots=True)
class _Transition(Schedule):
    """From one batch to another over so many examples, then constant.

    On a grid of 10 % from the first batch, so that it does not move at every step.
    """

    forms: ClassVar[tuple[str, ...]]
    name: ClassVar[str]

    first: int
    last: int
    examples: int
    form: str

    def __post_init__(self) -> None:
        keep_whole_numbers(self, "first", "last", "examples")
        if self.examples < self.first:
            raise SettingError(
                "the schedule ends within its first step",
                seen=f"examples={self.examples}, first batch {self.first}",
                fix=f"examples of many batches, such as {100 * self.first}",
            )
        if self.form not in self.forms:
            raise SettingError(
                f"form must be one of {', '.join(self.forms)}",
                seen=f"form={self.form!r}",
            )

    def factor(self, share: float) -> float:
        """The batch relative to the first one, at this share of the examples."""
        raise NotImplementedError

    def aim(self, examples: int, reading: Reading | None = None) -> Aim:
        """The batch at this place."""
        share = min(1.0, examples / self.examples)
        if share >= 1:
            return Aim.exact(self.last, f"the {self.name} is over")
        places = round(math.log(self.factor(share)) / math.log(STEP))
        low, high = min(self.first, self.last), max(self.first, self.last)
        batch = max(1, round(min(max(self.first * STEP**places, low), high)))
        return Aim.exact(batch, f"{share:.0%} of the {self.name}")

    def largest(self, examples: float = math.inf) -> int:
        """The larger end that is reached."""
        return max(self.first, self.batch_size(int(min(examples, self.examples))))

    def __str__(self) -> str:
        kept = ", rate kept" if self.rule == "none" else ""
        return (
            f"batch {self.first:,} -> {self.last:,} ({self.form}) over "
            f"{self.examples:,} examples{kept}"
        )


@dataclass(frozen=True, slots=True)
class Ramp(_Transition):
    """From one batch to another over so many examples, then constant.

    The usual warm-up of large-batch runs: early in training a small batch is enough.
    The learning rate follows the batch by the run's own rule. The batch moves in steps
    of 10 %, not at every step.

    Args:
        first: The batch to begin with.
        last: The batch to end with.
        examples: How many examples it takes.
        form: ``"linear"`` in examples, or ``"geometric"``.

    Raises:
        SettingError: A batch is no batch, or there is no such form.

    Example:
        >>> import rightbatch as rb
        >>> ramp = rb.schedules.Ramp(32, 256, 100_000)
        >>> [ramp.batch_size(n) for n in (0, 50_000, 100_000)]
        [32, 147, 256]

    References:
        Brown et al. 2020, arXiv:2005.14165; Merrill et al. 2025, arXiv:2505.23971.
    """

    forms: ClassVar[tuple[str, ...]] = ("linear", "geometric")
    name: ClassVar[str] = "ramp"

    form: Literal["linear", "geometric"] = "linear"

    def factor(self, share: float) -> float:
        """The batch relative to the first one, at this share of the examples."""
        ratio = self.last / self.first
        return 1 + (ratio - 1) * share if self.form == "linear" else ratio**share


@dataclass(frozen=True, slots=True)
class Anneal(_Transition):
    """Cool down by a growing batch at a constant learning rate.

    The noise temperature is proportional to lr / B, so the batch takes the place of a
    decaying rate. ``"geometric"`` is the practical form. ``"logarithmic"`` is the one
    that simulated annealing proves something for, ``T = c / log(k + k0)``, with k0 such
    that both ends are met; its guarantee is slow.

    Args:
        first: The batch to begin with.
        last: The batch to end with.
        examples: How many examples it takes.
        form: ``"geometric"`` or ``"logarithmic"``.

    Raises:
        SettingError: A batch is no batch, or there is no such form.

    Example:
        >>> import rightbatch as rb
        >>> rb.schedules.Anneal(32, 512, 100_000).batch_size(50_000)
        134
        >>> slow = rb.schedules.Anneal(32, 512, 100_000, form="logarithmic")
        >>> slow.batch_size(50_000)
        461

    References:
        Smith et al. 2018, arXiv:1711.00489; Geman and Geman 1984, "Stochastic
        relaxation, Gibbs distributions"; Hajek 1988, "Cooling schedules for optimal
        annealing".
    """

    rule: ClassVar[str | None] = "none"
    forms: ClassVar[tuple[str, ...]] = ("geometric", "logarithmic")
    name: ClassVar[str] = "annealing"

    form: Literal["geometric", "logarithmic"] = "geometric"

    def __post_init__(self) -> None:
        _Transition.__post_init__(self)
        if self.form == "logarithmic" and self.last <= self.first:
            raise SettingError(
                "a logarithmic schedule cools: its batch must grow",
                seen=f"first={self.first}, last={self.last}",
                fix="last larger than first, or form='geometric'",
            )

    def factor(self, share: float) -> float:
        """The batch relative to the first one, at this share of the examples."""
        if self.form == "geometric":
            return (self.last / self.first) ** share
        steps = self.examples / self.first
        return math.log(self.offset + share * steps) / math.log(self.offset)

    @property
    def offset(self) -> float:
        """The k0 of the logarithmic form, with k counted in batches of the first size.

        It solves ``log(k0 + K) / log(k0) = last / first``.
        """
        ratio, steps = self.last / self.first, self.examples / self.first
        low, high = 1e-12, 1e3  # of log(k0): the ratio falls from infinity to 1
        for _ in range(200):
            middle = math.sqrt(low * high)
            # log(k0 + K) = log(k0) + log1p(K / k0), without overflow
            value = 1 + math.log1p(steps * math.exp(-middle)) / middle
            low, high = (middle, high) if value > ratio else (low, middle)
        return math.exp(low)
