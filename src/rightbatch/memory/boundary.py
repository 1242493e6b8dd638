"""Where memory ends: a few real steps around the predicted batch."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rightbatch.core.trees import leaves
from rightbatch.core.user_code import blaming
from rightbatch.job.job import Job
from rightbatch.memory.envelope import Envelope
from rightbatch.memory.trial import PATIENCE_S, Trial, try_step

EXACT = 0.001  # a law this near to a real step is left as it is [assumed]
TRIALS = 4
LOOKED_AT = 256  # examples among which the longest is looked for [assumed]
FIRST_SHARE = 0.42  # of the limit: malloc may hold twice what is asked for [measured]
BELOW = 0.985  # of what should just fit is tried [assumed]
NEAR = 0.93  # of what did not fit is tried next [assumed]
ENOUGH = 1.015  # growth for which no more trial is made [assumed]


class StepMaker:
    """One job's step at any size: the batches, and the real steps made of them."""

    def __init__(self, job: Job, pieces: int, patience_s: float = PATIENCE_S) -> None:
        self.job, self.pieces, self.patience_s = job, pieces, patience_s
        self.trials: list[Trial] = []
        self.index, self.example = _longest(job)

    def batch(self, count: int) -> Any:
        """So many examples, each the longest one, on the CPU."""
        index = [self.index] * count
        return self.job.batch(index, torch.device("cpu"))

    def probe(self, size: int, device: torch.device, limit: float) -> Trial:
        """A small real step to learn from, and none of the trials."""
        found = self.trial(size, device, limit, exact=True)
        self.trials.pop()
        return found

    def trial(
        self, size: int, device: torch.device, limit: float | None, exact: bool = False
    ) -> Trial:
        """A real step, kept in the list."""
        found = try_step(
            self.job,
            self.batch,
            size,
            device,
            limit=limit,
            pieces=self.pieces,
            exact=exact,
            patience_s=self.patience_s,
        )
        self.trials.append(found)
        return found


def _longest(job: Job) -> tuple[int, str]:
    """The example with the most numbers among some, by which all is measured."""
    if isinstance(job.data, tuple):
        return 0, "all examples have one shape"
    stride = max(job.length // LOOKED_AT, 1)
    looked = range(0, job.length, stride)
    with blaming("the data set"):
        sizes = {i: _numbers(job.data[i]) for i in looked}
    index = max(sizes, key=lambda i: sizes[i])
    if len(set(sizes.values())) == 1:
        return index, f"{len(sizes)} examples looked at, all of one size"
    return index, f"the longest of {len(sizes)} examples looked at (number {index})"


def _numbers(example: Any) -> int:
    parts = list(leaves(example))
    tensors = sum(t.numel() for t in parts if isinstance(t, Tensor))
    others = sum(len(t) if isinstance(t, (str, bytes)) else 1 for t in parts)
    return tensors + others + sum(t.size for t in parts if isinstance(t, np.ndarray))


class Search:
    """A few real steps around the predicted batch, in the order that tells the most.

    What a process grows by is a line in the predicted peak: libraries add a fixed part,
    and an allocator that cannot give back what lies between blocks a share of it. The
    line goes through the steps that fitted, and is inverted for the next.

    Args:
        step: Makes them.
        device: Where.
        envelope: The law; becomes calibrated.
        limit: Bytes.
        tell: Hears of progress.
    """

    def __init__(
        self,
        step: StepMaker,
        device: torch.device,
        envelope: Envelope,
        limit: float,
        tell: Callable[[str], None],
    ) -> None:
        self.step, self.device, self.envelope = step, device, envelope
        self.limit, self.tell = limit, tell

    @property
    def best(self) -> Trial | None:
        """The largest step that came to its end within the limit."""
        fitting = [t for t in self.step.trials if t.fits and t.taken <= self.limit]
        return max(fitting, key=lambda t: t.micro_batch, default=None)

    @property
    def below(self) -> int:
        """More than this has been seen not to fit, or not to run."""
        failed = [t.micro_batch for t in self.step.trials if not t.fits]
        return min(failed) - 1 if failed else 2**62

    def run(self) -> str:
        """Make the trials; why there are no more of them, or ``""``."""
        most = self.step.job.length
        wanted = max(1, min(self._first(), most))
        while len(self.step.trials) < TRIALS:
            if self._too_long(wanted):
                return f"steps of {wanted:,} would take longer than the patience given"
            self.tell(f"batch {wanted:,}")
            exact = not any(t.allocated for t in self.step.trials)
            before = self.below
            found = self.step.trial(wanted, self.device, self.limit, exact)
            if found.fits is None:
                return f"a step of {wanted:,} failed: {found.seen}"
            self._calibrate(found)
            if found.fits:
                following = min(self._following(), most, self.below)
                if following <= ENOUGH * wanted:
                    break
            elif wanted == 1:
                break
            else:
                low, fails = self.best.micro_batch if self.best else 0, wanted
                following = (low + fails) // 2 if low >= fails // 4 else fails // 2
                if before == 2**62 and low:  # the first that failed was near
                    following = max(following, int(NEAR * fails))
            wanted = max(following, 1)
            if any(t.micro_batch == wanted for t in self.step.trials):
                break
        return "" if self.best is not None else "no step fitted"

    def _too_long(self, wanted: int) -> bool:
        """By the largest step so far; time grows no slower than the batch."""
        last = max(self.step.trials, key=lambda t: t.micro_batch, default=None)
        if last is None or not last.fits or wanted <= last.micro_batch:
            return False
        grown = last.seconds * wanted / last.micro_batch
        return grown > self.step.patience_s

    def _calibrate(self, found: Trial) -> None:
        """Scale the law by what kernels take for themselves."""
        if not found.allocated or self.envelope.factor != 1.0:
            return
        size = found.micro_batch
        scaled = self.envelope.calibrated(size, found.allocated)
        if abs(scaled.peak(size) / self.envelope.peak(size) - 1) > EXACT:
            method = f"{self.envelope.method}, scaled by a real step of {size}"
            self.envelope = replace(scaled, method=method)

    def _first(self) -> int:
        """Where malloc may hold twice what is asked for, far below the limit."""
        share = FIRST_SHARE if self._hoards else NEAR
        return self.envelope.largest(share * self.limit)

    @property
    def _hoards(self) -> bool:
        """Whether malloc keeps what lies between blocks, as the C library does."""
        told = "MALLOC_MMAP_THRESHOLD_" in os.environ
        return self.device.type == "cpu" and not told

    def _following(self) -> int:
        """By the line through what fitted so far."""
        points = sorted(
            (self.envelope.peak(t.micro_batch), t.taken)
            for t in self.step.trials
            if t.fits
        )
        x, y = points[-1]
        slope = max(y / x, 1.0) if self._hoards else 1.0
        if len(points) > 1:
            (x0, y0), (x, y) = points[-2:]
            slope = max((y - y0) / max(x - x0, 1.0), 1.0)
        return int(BELOW * self.envelope.largest(x + (self.limit - y) / slope))
