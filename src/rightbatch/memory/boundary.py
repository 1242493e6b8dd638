"""Where memory ends: a few real steps around the predicted batch."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

import torch

from rightbatch.memory.envelope import Envelope
from rightbatch.memory.trial import Trial

EXACT = 0.001  # a law this near to a real step is left as it is [assumed]
TRIALS = 4  # from the first that runs
FIRST_SHARE = 0.42  # of the limit: malloc may hold twice what is asked for [measured]
BELOW = 0.985  # of what should just fit is tried [assumed]
NEAR = 0.93  # of what did not fit is tried next [assumed]
ENOUGH = 1.015  # growth for which no more trial is made [assumed]


def malloc_hoards(device: torch.device) -> bool:
    """Whether malloc keeps what lies between blocks, as the C library does."""
    return device.type == "cpu" and "MALLOC_MMAP_THRESHOLD_" not in os.environ


class Search:
    """A few real steps around the predicted batch, in the order that tells the most.

    What a process grows by is a line in the predicted peak: libraries add a fixed part,
    and an allocator that cannot give back what lies between blocks a share of it. The
    line goes through the steps that fitted, and is inverted for the next.

    Args:
        make_trial: ``(micro_batch, exact) ->`` a trial within the limit; exact: with
            the allocator's own account.
        envelope: The law.
        limit: Bytes.
        most: Examples that there are.
        hoards: Whether malloc keeps what lies between blocks.
        patience_s: Steps that would take longer are not tried.

    Attributes:
        envelope: The law, scaled by what kernels take for themselves once that is seen.
        trials: Those made, in order.
    """

    def __init__(
        self,
        make_trial: Callable[[int, bool], Trial],
        envelope: Envelope,
        *,
        limit: float,
        most: int,
        hoards: bool,
        patience_s: float,
    ) -> None:
        self.make_trial, self.envelope = make_trial, envelope
        self.limit, self.most = limit, most
        self.hoards, self.patience_s = hoards, patience_s
        self.trials: list[Trial] = []

    @property
    def best(self) -> Trial | None:
        """The largest step that came to its end within the limit."""
        fitting = [t for t in self.trials if t.fits and t.taken <= self.limit]
        return max(fitting, key=lambda t: t.micro_batch, default=None)

    @property
    def largest(self) -> int:
        """The largest batch: of a step that fitted; by the law where none was tried.

        0 where memory ran out and no step fitted: the law is wrong there.
        """
        if self.best is not None:
            return self.best.micro_batch
        if self._ran_out:
            return 0
        return min(self.envelope.largest(self.limit), self.most)

    @property
    def failure(self) -> Trial | None:
        """The smallest that ended in an error which is no lack of memory."""
        failed = (t for t in self.trials if t.fits is None and not t.late)
        return min(failed, key=lambda t: t.micro_batch, default=None)

    @property
    def _ran_out(self) -> list[int]:
        """The sizes at which memory ran out."""
        return [t.micro_batch for t in self.trials if t.fits is False]

    def run(self, tell: Callable[[str], None]) -> str:
        """Make the trials; why there are no more of them, or ``""``.

        Args:
            tell: Hears of progress.
        """
        # At first far below the limit, where malloc may hold twice what is asked for.
        share = FIRST_SHARE if self.hoards else NEAR
        size = max(1, min(self.envelope.largest(share * self.limit), self.most))
        counted, failed = 0, ""
        while counted < TRIALS:
            if self._too_long(size):
                return f"steps of {size:,} would take longer than the patience given"
            tell(f"batch {size:,}")
            trial = self.make_trial(size, not any(t.allocated for t in self.trials))
            self.trials.append(trial)
            counted += self.best is not None
            if trial.fits is None:
                failed = f"a step of {size:,} failed: {trial.seen}"
                # One that took too long says nothing about the law. Where memory ran
                # out the law is wrong, and where the job fails it is of no use: then
                # only a step that runs is an answer.
                if self.best is not None or (trial.late and not self._ran_out):
                    return failed
            if trial.fits and failed:
                return failed
            self._calibrate(trial)
            following = self._larger() if trial.fits else self._smaller(size)
            if trial.fits and following <= ENOUGH * size:
                break
            size = max(following, 1)
            if any(t.micro_batch == size for t in self.trials):
                break
        return failed or ("" if self.best is not None else "no step fitted")

    def _too_long(self, size: int) -> bool:
        """By the largest step so far; time grows no slower than the batch."""
        last = max(self.trials, key=lambda t: t.micro_batch, default=None)
        if last is None or not last.fits or size <= last.micro_batch:
            return False
        return last.seconds * size / last.micro_batch > self.patience_s

    def _calibrate(self, trial: Trial) -> None:
        """Scale the law by what kernels take for themselves."""
        if not trial.allocated or self.envelope.factor != 1.0:
            return
        size = trial.micro_batch
        scaled = self.envelope.calibrated(size, trial.allocated)
        if abs(scaled.peak(size) / self.envelope.peak(size) - 1) > EXACT:
            method = f"{self.envelope.method}, scaled by a real step of {size}"
            self.envelope = replace(scaled, method=method)

    def _larger(self) -> int:
        """The next size after one that fitted, by the line through those that did."""
        points = sorted(
            (self.envelope.peak(t.micro_batch), t.taken) for t in self.trials if t.fits
        )
        peak, taken = points[-1]
        slope = max(taken / peak, 1.0) if self.hoards else 1.0
        if len(points) > 1:
            peak_before, taken_before = points[-2]
            rise = (taken - taken_before) / max(peak - peak_before, 1.0)
            slope = max(rise, 1.0)
        room = self.envelope.largest(peak + (self.limit - taken) / slope)
        below = min(self._ran_out, default=self.most + 1) - 1
        return min(int(BELOW * room), self.most, below)

    def _smaller(self, size: int) -> int:
        """The next size after one that did not fit."""
        fitted = self.best.micro_batch if self.best else 0
        halfway = (fitted + size) // 2 if fitted >= size // 4 else size // 2
        first_failure = sum(not t.fits for t in self.trials) == 1
        if first_failure and fitted:  # it was near
            return max(halfway, int(NEAR * size))
        return halfway
