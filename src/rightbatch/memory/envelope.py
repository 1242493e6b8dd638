"""Peak memory as a law of the batch: the highest of many lines, one per operation.

Every operation of a step has an amount of memory alive after it, which is a line
``a + b B`` in the batch (with ``c B^2`` where examples of a batch meet, as in
contrastive losses). The peak is the highest of them, so it bends upward: a line
through two measured peaks is always too low beyond them. Fitting each operation
instead, and taking the maximum afterwards, gives the peak at any batch, the operation
that binds there, and the largest batch within a limit in closed form.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from rightbatch.core.errors import SettingError, UnidentifiedError
from rightbatch.core.units import show_bytes
from rightbatch.memory.points import MemoryPoint

if TYPE_CHECKING:
    from rightbatch.memory.traced_step import StepTrace

LARGEST = 2**40  # examples; beyond any device


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """An operation that binds at some batch: ``a + b B + c B^2`` bytes are alive.

    Attributes:
        constant: Bytes.
        linear: Bytes per example.
        square: Bytes per pair of examples.
        operation: Such as ``"aten.mm"``.
        place: Such as ``"backward"`` or ``"forward in blocks.0"``.
    """

    constant: float
    linear: float
    square: float = 0.0
    operation: str = "step"
    place: str = ""

    def at(self, batch: float) -> float:
        """Bytes alive at a batch."""
        return self.constant + self.linear * batch + self.square * batch * batch

    def largest(self, limit: float) -> int:
        """The largest batch at which it stays within a limit; 0: at none."""
        left = limit - self.constant
        if left < 0:
            return 0
        if self.square > 0:
            root = math.sqrt(self.linear**2 + 4 * self.square * left)
            return math.floor((root - self.linear) / (2 * self.square))
        return math.floor(min(left / self.linear, LARGEST)) if self.linear else LARGEST

    def __str__(self) -> str:
        return f"{self.operation} ({self.place})" if self.place else self.operation


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """Peak memory of one step against the micro-batch.

    Attributes:
        segments: The operations that bind somewhere, from small batches to large ones.
        method: How it came about.
        parameters: Bytes of the parameters; like the next three 0 if not known.
        buffers: Bytes of the buffers.
        gradients: Bytes of the gradients.
        state: Bytes of the optimizer's state.
        unit: Bytes of the largest module that would be sharded as one.
        convolves: Whether kernels of convolutions take memory that no trace sees.
        factor: Measured over predicted bytes, beyond what is there between steps; 1
            before it was measured.
    """

    segments: tuple[Segment, ...]
    method: str
    parameters: int = 0
    buffers: int = 0
    gradients: int = 0
    state: int = 0
    unit: int = 0
    convolves: bool = False
    factor: float = 1.0

    @property
    def resident(self) -> int:
        """Bytes that are there between steps."""
        return self.parameters + self.buffers + self.state

    def peak(self, batch: float) -> float:
        """Most bytes alive during a step of so many examples."""
        highest = self.binding(batch).at(batch)
        return self.resident + self.factor * (highest - self.resident)

    def binding(self, batch: float) -> Segment:
        """The operation during which the most is alive."""
        return max(self.segments, key=lambda segment: segment.at(batch))

    def largest(self, limit: float) -> int:
        """The largest micro-batch within a limit in bytes; 0 if not even one fits."""
        within = self.resident + (limit - self.resident) / self.factor
        return max(0, min(segment.largest(within) for segment in self.segments))

    def changes(self, most: int) -> list[tuple[int, Segment]]:
        """Where the binding operation changes: (first batch, operation), up to most."""
        changes = [(1, self.binding(1))]
        while True:
            first, present = changes[-1]
            larger = range(first + 1, most + 1)
            # The difference is convex: once another is higher, one is from then on.
            index = bisect.bisect_left(
                larger, True, key=lambda b: self.binding(b).at(b) > present.at(b)
            )
            if index == len(larger):
                return changes
            changes.append((larger[index], self.binding(larger[index])))

    def relative_error(self, trace: StepTrace) -> float:
        """How far the law is from a traced step that took no part in it."""
        traced = max(a + b for a, b in zip(trace.bytes, trace.wasted, strict=True))
        return abs(self.peak(trace.micro_batch) / traced - 1)

    def calibrated(self, batch: int, measured: float) -> Envelope:
        """Scaled so that the peak at ``batch`` is the measured one."""
        predicted = self.binding(batch).at(batch) - self.resident
        factor = (measured - self.resident) / max(predicted, 1.0)
        return replace(self, factor=max(factor, 1e-3))

    def on_ranks(self, ranks: int, *, sharded: bool) -> Envelope:
        """The same step on several processes: what they add, or divide.

        DDP keeps a second copy of the gradients in its buckets. FSDP2 keeps one part of
        parameters, gradients and state on each rank, and two units of parameters and
        one of gradients whole for a while.

        Args:
            ranks: How many processes.
            sharded: FSDP2 instead of DDP.
        """
        if ranks == 1:
            return self
        if sharded:
            kind, kept, added = "FSDP2", 1 / ranks, 3 * self.unit
        else:
            kind, kept, added = "DDP", 1.0, self.gradients
        added -= (1 - kept) * (self.parameters + self.state)
        # Gradients are all there in the update only.
        in_update = added - (1 - kept) * self.gradients
        moved = tuple(
            replace(
                segment,
                constant=segment.constant
                + (in_update if segment.place == "update" else added),
            )
            for segment in self.segments
        )
        return replace(
            self,
            segments=moved,
            method=f"{self.method}; {ranks} ranks by {kind}, modelled",
            parameters=round(self.parameters * kept),
            gradients=round(self.gradients * kept),
            state=round(self.state * kept),
        )


def fit_envelope(traces: Sequence[StepTrace]) -> Envelope:
    """Fit every operation of traced steps, and keep those that bind somewhere.

    A line through the first trace and the last; where the one between them does not lie
    on it, a square through all three.

    Args:
        traces: Three, of the same operations, in order of size.
    """
    x = np.array([trace.micro_batch for trace in traces], float)
    y = np.array([trace.bytes for trace in traces], float)
    linear = (y[2] - y[0]) / (x[2] - x[0])
    constant = y[0] - linear * x[0]
    square = np.zeros_like(linear)
    bends = np.abs(constant + linear * x[1] - y[1]) > 1
    if bends.any():
        curve = np.polynomial.polynomial.polyfit(x, y[:, bends], 2)
        upward = curve[2] > 0  # downward it would end: the line is kept, above it
        index = np.flatnonzero(bends)[upward]
        constant[index], linear[index], square[index] = curve[:, upward]
    last = traces[-1]
    constant = constant + np.array(last.wasted)
    linear = np.where(square > 0, linear, np.maximum(linear, 0.0))
    kept = _binding(constant, linear, square)
    sizes = ", ".join(str(trace.micro_batch) for trace in traces)
    return Envelope(
        segments=tuple(
            Segment(
                constant=float(constant[i]),
                linear=float(linear[i]),
                square=float(square[i]),
                operation=last.operations[i],
                place=last.places[i],
            )
            for i in kept
        ),
        method=f"traced at {sizes} examples",
        parameters=last.parameters,
        buffers=last.buffers,
        gradients=last.gradients,
        state=last.state,
        unit=last.unit,
        convolves=any("convolution" in name for name in last.operations),
    )


def fit_points(points: Sequence[MemoryPoint]) -> Envelope:
    """The lines through neighbouring measured peaks, the last one extended.

    The peak bends upward, so that between two points their line is never too low;
    beyond the largest point it may be.

    Raises:
        UnidentifiedError: Fewer than two sizes.
    """
    if len(points) < 2:
        raise UnidentifiedError(
            "a law of memory needs at least 2 batch sizes", seen=f"{len(points)}"
        )
    ordered = sorted(points, key=lambda p: p.micro_batch)
    segments: list[Segment] = []
    for smaller, larger in reversed(list(itertools.pairwise(ordered))):
        rise = larger.peak_memory_bytes - smaller.peak_memory_bytes
        slope = max(rise / (larger.micro_batch - smaller.micro_batch), 0.0)
        if segments and slope > segments[-1].linear:
            continue  # a step up that is over: the line beyond it lies above anyway
        constant = larger.peak_memory_bytes - slope * larger.micro_batch
        segments.append(Segment(constant=constant, linear=slope))
    return Envelope(segments=tuple(segments), method=f"measured at {len(points)} sizes")


def check_room(law: Envelope, limit: float) -> None:
    """Refuse a limit that not even one example fits into.

    Raises:
        SettingError: It says what the model itself takes.
    """
    if law.largest(limit) >= 1:
        return
    fixed = law.resident + law.gradients
    raise SettingError(
        "not even one example fits in this memory",
        seen=f"limit {show_bytes(limit)}, one example takes {show_bytes(law.peak(1))}",
        why=f"parameters {show_bytes(law.parameters)}, gradients "
        f"{show_bytes(law.gradients)} and the optimizer's state "
        f"{show_bytes(law.state)} alone are {show_bytes(fixed)}"
        if fixed
        else "",
        fix="more memory, a smaller model, activation checkpointing, an optimizer "
        "with less state, or sharding over devices",
    )


def _binding(constant: np.ndarray, linear: np.ndarray, square: np.ndarray) -> list[int]:
    """Operations that are highest at some batch, in the order of batches."""
    # Every batch up to 128, then steps of 1 %: between two of them no other line can
    # pass the highest by more than a trifle, since all of them bend upward.
    small = np.arange(1, 129, dtype=float)
    large = np.exp(np.arange(math.log(129), math.log(LARGEST), 0.01))
    kept: list[int] = []
    for batch in np.concatenate([small, large]):
        best = int(np.argmax(constant + linear * batch + square * batch * batch))
        if not kept or kept[-1] != best:
            kept.append(best)
    return list(dict.fromkeys(kept))
