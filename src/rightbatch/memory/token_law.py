"""Peak memory over batch and length together: how many tokens fit, at any length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rightbatch.core.errors import SettingError
from rightbatch.core.trees import map_tensors, tensors
from rightbatch.job.job import Job
from rightbatch.memory.envelope import Envelope, envelope_of
from rightbatch.memory.step import Step, step_of
from rightbatch.memory.step_law import AGREES
from rightbatch.memory.traced_step import StepTrace, check_same_operations, trace_step

TRACED_BATCHES, HELD_OUT_BATCH = (2, 4), 16
SHORTEST = 4  # an axis below this is taken for no length [assumed]
Coefficients = Float[np.ndarray, "6 operations"]


@dataclass(frozen=True, repr=False)
class TokenLaw:
    """Bytes alive after every operation, as a polynomial in batch B and length T.

    With terms 1, B, T, B T, T^2 and B T^2: weights, examples, masks and positions,
    tokens, and attention without or with the batch.

    Attributes:
        terms: Coefficients in that order, shape (6, operations).
        trace: One of the traces: names of the operations, and what is always there.
        lengths: Those that were traced.
    """

    terms: Coefficients
    trace: StepTrace
    lengths: tuple[int, ...]

    def at(self, length: int) -> Envelope:
        """The law of the batch at one length."""
        fixed, batch, token, batch_token, token2, batch_token2 = self.terms
        return envelope_of(
            fixed + token * length + token2 * length**2,
            batch + batch_token * length + batch_token2 * length**2,
            np.zeros_like(fixed),
            self.trace,
            method=f"traced at lengths {', '.join(map(str, self.lengths))}",
        )

    def peak(self, batch: int, length: int) -> int:
        """Predicted most bytes alive in a step of so many examples of one length."""
        return round(self.at(length).peak(batch))

    def largest(self, limit: float, length: int) -> int:
        """The most examples of one length within a limit in bytes; 0: not one fits.

        Raises:
            SettingError: The length or the limit is not positive.
        """
        if not length >= 1 or not limit > 0:
            raise SettingError(
                "length and limit must be positive",
                seen=f"length={length!r}, limit={limit!r}",
            )
        return self.at(length).largest(limit)

    def __repr__(self) -> str:
        return f"TokenLaw(traced at lengths {', '.join(map(str, self.lengths))})"


def token_law(job: Job, lengths: Sequence[int] | None = None) -> TokenLaw:
    """Trace a step at several batches and lengths: how many tokens fit, at any length.

    The second axis that the tensors of a batch share is taken for the length, and cut
    or repeated.

    Args:
        job: Its batches hold tensors of shape (examples, length, ...).
        lengths: Three or more to trace at; default: a quarter, a half and the whole of
            the longest example's.

    Raises:
        SettingError: There is no such axis, or a length makes no sense; or memory
            bends with the batch, as where examples meet.
        JobError: The step needs numbers that only a real run has, or cannot run at a
            length.

    Example:
        >>> import torch, rightbatch as rb
        >>> from rightbatch.memory.token_law import token_law
        >>> job = rb.Job(
        ...     model=lambda: torch.nn.Embedding(100, 64),
        ...     loss=lambda model, batch: model(batch[0]).square().mean(),
        ...     data=(torch.zeros(50, 32, dtype=torch.long),),
        ...     optimizer=torch.optim.AdamW,
        ...     batch_size=8,
        ... )
        >>> law = token_law(job, (8, 16, 32))
        >>> [law.largest(2**24, length) for length in (8, 64, 512)]
        [1620, 202, 25]
    """
    step = step_of(job)
    longest = _shared_length(step.batch(2))
    if lengths is None:
        lengths = (longest // 4, longest // 2, longest)
    wanted = sorted({int(length) for length in lengths})
    whole = all(length == int(length) for length in lengths)
    if len(wanted) < 3 or wanted[0] < 1 or not whole:
        raise SettingError(
            "three different lengths are needed", seen=str(wanted), fix="128,512,2048"
        )
    traces: dict[tuple[int, int], StepTrace] = {}
    for length in wanted:
        *fitted, held_out = trace_step(
            _with_length(step, longest, length), (*TRACED_BATCHES, HELD_OUT_BATCH)
        )
        traces.update({(trace.micro_batch, length): trace for trace in fitted})
    law = _fit(traces)
    error = law.at(wanted[-1]).relative_error(held_out)
    if error > AGREES:
        raise SettingError(
            "memory is no product of batch and length",
            seen=f"the law misses {error:.1%} at {HELD_OUT_BATCH} examples of "
            f"{wanted[-1]}",
            why="its examples meet, or its kernels change with the batch",
            fix="rb.largest_batch(job, memory) at the length that is trained",
        )
    return law


def _shared_length(batch: Any) -> int:
    """The second axis that all tensors with one share."""
    axes = {leaf.shape[1] for leaf in tensors(batch) if leaf.ndim > 1}
    if len(axes) != 1 or min(axes) < SHORTEST:
        raise SettingError(
            "the batch has no axis of length",
            seen=f"its tensors share no second axis of {SHORTEST} or more",
            why="how memory grows with length cannot be derived",
            fix="batches of shape (examples, length)",
        )
    return axes.pop()


def _with_length(step: Step, longest: int, length: int) -> Step:
    """The step with its axis of length cut, or repeated, to so much."""
    index = torch.arange(length) % longest

    def resized(tensor: Tensor) -> Tensor:
        has_length = tensor.ndim > 1 and tensor.shape[1] == longest
        return tensor.index_select(1, index) if has_length else tensor

    return replace(step, batch=lambda count: map_tensors(resized, step.batch(count)))


def _fit(traces: Mapping[tuple[int, int], StepTrace]) -> TokenLaw:
    """Fit every operation over (batch, length)."""
    check_same_operations(tuple(traces.values()), "length")
    batch, length = np.array(list(traces), float).T
    columns = np.stack(
        [
            np.ones_like(batch),
            batch,
            length,
            batch * length,
            length**2,
            batch * length**2,
        ],
        axis=1,
    )
    scale = np.abs(columns).max(0)
    alive = np.array([trace.bytes for trace in traces.values()], float)
    scaled = np.linalg.lstsq(columns / scale, alive, rcond=None)[0]
    return TokenLaw(
        terms=scaled / scale[:, None],
        trace=traces[max(traces, key=lambda key: key[0] * key[1])],
        lengths=tuple(sorted({length for _, length in traces})),
    )
