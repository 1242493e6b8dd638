"""Between two steps: what the batch is from now on, and why."""

from __future__ import annotations

import math
import warnings
from collections import deque
from dataclasses import dataclass
from typing import Any

import torch

from rightbatch.core.errors import SettingError
from rightbatch.core.whole_number import whole_number
from rightbatch.job.optimizers import check_rates, first_rate
from rightbatch.job.several_optimizers import Optimizers
from rightbatch.noise.monitor import NoiseMonitor
from rightbatch.schedules.by_examples import ByExamples
from rightbatch.schedules.hyperparameters import Hyperparameters
from rightbatch.schedules.lr_exchange import check_one_decay
from rightbatch.schedules.rate import Rate
from rightbatch.schedules.schedule import Aim, Constant, Reading, Schedule
from rightbatch.training.ranks import Ranks

# A live batch moves only when the interval of what is asked for has left this band
# around it: the optimum is flat, within it there is nothing to gain. [assumed]
BAND = 1.25
FACTOR = 2.0  # and then at most so far at once [assumed]
LOOK_EVERY = 25  # steps between two looks at the noise [assumed]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One decision about the batch.

    Attributes:
        examples: Seen when it was made.
        batch_from: Before.
        batch_to: From the next step on; the same where it was held.
        lr: Learning rate of the first param group from now on; None: it has none.
        reason: Why.
    """

    examples: int
    batch_from: int
    batch_to: int
    lr: float | None
    reason: str

    def __str__(self) -> str:
        if self.batch_from == self.batch_to:
            return f"batch stays {self.batch_from}: {self.reason}"
        rate = "" if self.lr is None else f", lr {self.lr:.3g}"
        return f"batch {self.batch_from} -> {self.batch_to}{rate}: {self.reason}"


class Controller:
    """Makes batch and learning rate follow a schedule, at step boundaries.

    Call it once after every step. It sets ``stream.batch_size`` and the optimizer's
    numbers together, or neither. A live schedule is followed only where its interval
    has left a band around the present batch, by at most a factor of two at a time, and
    never beyond the limit.

    Args:
        schedule: What to follow.
        optimizer: Whose numbers follow the batch; one, or a list of several.
        batch_size: The batch its present numbers were chosen for.
        stream: What to set ``batch_size`` on; None: read it from ``batch_size`` here.
        monitor: The noise, for a live schedule.
        rule: How the numbers follow, see `rightbatch.schedules.scaling.scaling_for`.
        noise_scale: For the noise-aware rules; where there is none, a live schedule
            brings its own.
        exponent: For the rule ``"exponent"``.
        rate: A learning-rate decay by examples, beside the batch.
        scheduler: `ByExamples` around a torch scheduler that goes on beside it, or a
            list of them. A bare one is refused where the batch changes: it counts
            steps, of which there are then fewer, and its decay would not be finished.
        largest: Never a batch beyond: memory, or the data set.
        multiple: Batches that are not exact are multiples of this, where larger:
            micro-batch times ranks.
        model: The model as the loop calls it, so that all ranks decide alike.

    Attributes:
        batch_size: Examples of the next step.
        changes: The last thousand decisions.

    Raises:
        SettingError: The schedule is live and there is no monitor; two learning-rate
            decays are given; the rule does not reach the schedule's batches.

    Example:
        >>> import torch, rightbatch as rb
        >>> weight = torch.nn.Parameter(torch.zeros(3))
        >>> sgd = torch.optim.SGD([weight], lr=0.1)
        >>> ramp = rb.schedules.Ramp(32, 128, 1_000)
        >>> controller = rb.Controller(ramp, sgd, batch_size=64)
        >>> controller.batch_size, sgd.param_groups[0]["lr"]
        (32, 0.05)
        >>> str(controller(examples=1_000))
        'batch 32 -> 128, lr 0.2: the ramp is over'
    """

    def __init__(
        self,
        schedule: Schedule,
        optimizer: Optimizers,
        batch_size: int,
        *,
        stream: Any = None,
        monitor: NoiseMonitor | None = None,
        rule: str = "auto",
        noise_scale: float | None = None,
        exponent: float | None = None,
        rate: Rate | None = None,
        scheduler: Any = None,
        largest: int | None = None,
        multiple: int = 1,
        model: torch.nn.Module | None = None,
    ) -> None:
        batch_size = whole_number(batch_size, "batch_size")
        multiple = whole_number(multiple, "multiple")
        if largest is not None:
            largest = whole_number(largest, "largest")
        if schedule.live and monitor is None:
            raise SettingError(
                f"{type(schedule).__name__} needs a monitor",
                why="it follows the noise measured in the run",
                fix="monitor=rb.NoiseMonitor(model, optimizer)",
            )
        check_one_decay(schedule, rate)
        _check_counts_examples(scheduler, schedule)
        self.schedule, self.monitor, self.stream = schedule, monitor, stream
        self.rate, self.multiple = rate, multiple
        self.largest = (1 << 40) if largest is None else largest
        self._most = min(self.largest, schedule.largest())
        self.numbers = Hyperparameters(
            optimizer,
            batch_size,
            rule=schedule.rule or rule,
            noise_scale=noise_scale,
            exponent=exponent,
            scheduler=scheduler,
        )
        if rate is not None or hasattr(schedule, "rate"):
            check_rates(self.numbers.optimizer, "a decay is to be followed")
        self.changes: deque[Change] = deque(maxlen=1000)
        self.batch_size = self._sized(schedule.start)
        self._ranks = None if model is None else Ranks(model)
        # A planned one belongs to the planned rate: with the noise of the moment in its
        # place the rate at the planned batch itself would wander.
        self._noise_unknown = noise_scale is None
        self._first_signal = 0.0
        self._calls = 0
        self._held = ""
        self._try_ends()
        self._set(self.batch_size, self._rate(0, schedule.aim(0), self.batch_size))

    def __call__(self, examples: int) -> Change | None:
        """Decide about the next step; so many examples have been seen.

        Collective with a live schedule on several ranks.

        Returns:
            The decision, if there was one to make; None if everything stays.
        """
        examples = whole_number(examples, "examples", least=0)
        self._calls += 1
        if self.schedule.live and self._calls % LOOK_EVERY:
            self._set(self.batch_size, self._rate(examples, None, self.batch_size))
            return None
        aim = self.schedule.aim(examples, self._reading())
        wanted, reason = self.batch_size, ""
        if aim is not None:
            wanted, reason = self._wanted(aim)
        if self._ranks is not None and self.schedule.live:
            wanted, reason = self._ranks.from_first((wanted, reason))
        before, refused = self.batch_size, None
        try:
            self._set(wanted, self._rate(examples, aim, wanted))
        except SettingError as error:
            wanted, reason, refused = before, error.what, error
        if wanted == before and (not reason or reason == self._held):
            return None
        self._held = reason if wanted == before else ""
        if refused and not self.schedule.live:  # which might never move again
            warnings.warn(
                f"{self.schedule}: held at {before} after {examples:,} examples: "
                f"{refused}",
                stacklevel=2,
            )
        change = Change(
            examples=examples,
            batch_from=before,
            batch_to=wanted,
            lr=first_rate(self.numbers.optimizer),
            reason=reason,
        )
        self.changes.append(change)
        return change

    def undo(self) -> None:
        """Take the last change back: batch and numbers."""
        self.numbers.undo()
        self.batch_size = self.numbers.batch_size
        if self.stream is not None:
            self.stream.batch_size = self.batch_size

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return {
            "batch_size": self.batch_size,
            "calls": self._calls,
            "first_signal": self._first_signal,
            "held": self._held,
            "noise_scale": self.numbers.noise_scale,
            "numbers": self.numbers.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`; the optimizer's state is loaded beside it."""
        self.batch_size, self._calls = state["batch_size"], state["calls"]
        self._first_signal, self._held = state["first_signal"], state["held"]
        self.numbers.noise_scale = state["noise_scale"]
        self.numbers.load_state_dict(state["numbers"])
        if self.stream is not None:
            self.stream.batch_size = self.batch_size

    def _set(self, batch_size: int, rate: float) -> None:
        """Numbers first: where they cannot follow, the batch does not move either."""
        numbers = self.numbers
        if batch_size != numbers.batch_size or rate != numbers.rate:
            numbers.move(batch_size, rate)
        self.batch_size = batch_size
        if self.stream is not None and self.stream.batch_size != batch_size:
            self.stream.batch_size = batch_size

    def _rate(self, examples: int, aim: Aim | None, batch: int) -> float:
        own = 1.0 if self.rate is None else self.rate(examples)
        if aim is None or self.schedule.live:
            return own
        # What is exchanged for the batch goes by the batch as it was rounded.
        return own * aim.rate * (batch / aim.batch) ** self.schedule.power

    def _wanted(self, aim: Aim) -> tuple[int, str]:
        """The batch that the aim asks for, within the limits, and why."""
        if not self.schedule.live:
            wanted = self._sized(aim.batch)
            return wanted, aim.reason if wanted != self.batch_size else ""
        present = self.batch_size
        if present / BAND <= aim.high and aim.low <= present * BAND:
            return present, ""
        bounded = min(max(aim.batch, present / FACTOR), present * FACTOR)
        rounded = self._sized(bounded)
        if rounded == present and aim.batch > present:
            return present, f"{aim.reason}; {present} is the largest allowed"
        return rounded, aim.reason

    def _sized(self, batch: float) -> int:
        """A possible batch near it: whole micro-batches, within the limit."""
        batch = min(batch, self._most)
        if self.schedule.exact or batch < self.multiple:
            return max(1, round(batch))
        whole = round(batch / self.multiple) * self.multiple
        return whole if whole <= self._most else whole - self.multiple

    def _reading(self) -> Reading | None:
        """The noise now, if the schedule wants it and anything is known."""
        if not self.schedule.live or self.monitor is None:
            return None
        noise = self.monitor.read()
        if not math.isfinite(noise.noise_scale.high):  # too few of late: all there are
            noise = self.monitor.read(window=noise.examples)
        scale, signal = noise.noise_scale, noise.grad_norm_sq
        if not (math.isfinite(scale.value) and scale.value > 0 and signal.value > 0):
            return None
        if not self._first_signal and signal.low > 0:
            self._first_signal = signal.value
        if self._noise_unknown:
            self.numbers.noise_scale = scale.value
        return Reading(
            noise_scale=scale,
            grad_norm_sq=signal,
            first_grad_norm_sq=self._first_signal,
        )

    def _try_ends(self) -> None:
        """Whether the rule reaches the batches of the schedule: now, not in an hour.

        Raises:
            SettingError: It does not.
        """
        sizes = {self.batch_size}
        if not self.schedule.live:
            sizes.add(self._sized(self.schedule.largest()))
        for size in sizes:
            self.numbers.move(size)
            self.numbers.undo()


def _check_counts_examples(scheduler: Any, schedule: Schedule) -> None:
    """Refuse a scheduler that counts steps beside a batch that changes.

    Raises:
        SettingError: It does.
    """
    given = scheduler if isinstance(scheduler, (list, tuple)) else [scheduler]
    bare = [s for s in given if s is not None and not isinstance(s, ByExamples)]
    if bare and not isinstance(schedule, Constant):
        raise SettingError(
            f"{type(bare[0]).__name__} counts steps, and the batch changes",
            seen=str(schedule),
            why="with other batches it is at another place after as many examples: a "
            "ramp would leave its decay unfinished",
            fix="scheduler=rb.schedules.ByExamples(scheduler, batch_size=...), stepped "
            "by examples; or rate=rb.schedules.Rate..., which counts them",
        )
