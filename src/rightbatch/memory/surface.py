"""Peak memory over batch and length together: how many tokens fit, at any length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from rightbatch.core.errors import SettingError, UnidentifiedError
from rightbatch.memory.envelope import Envelope, envelope_of
from rightbatch.memory.traced_step import Probe

Array = Float[np.ndarray, "..."]


@dataclass(frozen=True, repr=False)
class TokenLaw:
    """Bytes alive after every operation, as a polynomial in batch B and length T.

    With terms 1, B, T, B T, T^2 and B T^2: weights, examples, masks and positions,
    tokens, and attention without or with the batch.

    Attributes:
        terms: Coefficients in that order, shape (6, operations).
        probe: One of the traces: names of the operations, and what is always there.
        lengths: Those that were traced.
    """

    terms: Array
    probe: Probe
    lengths: tuple[int, ...]

    def at(self, length: int) -> Envelope:
        """The law of the batch at one length."""
        one, batch, tokens, both, square, cube = self.terms
        return envelope_of(
            one + tokens * length + square * length**2,
            batch + both * length + cube * length**2,
            np.zeros_like(one),
            self.probe,
            method=f"traced at lengths {', '.join(map(str, self.lengths))}",
        )

    def peak(self, batch: int, length: int) -> int:
        """Predicted most bytes alive in a step of so many examples of one length."""
        return round(self.at(length).peak(batch))

    def largest(self, limit: float, length: int) -> int:
        """The most examples of one length within a limit in bytes; 0: not one fits.

        Raises:
            SettingError: The length is not positive, or the limit no number.
        """
        if not length >= 1 or not isinstance(limit, (int, float)) or not limit > 0:
            raise SettingError(
                "a length and a number of bytes are needed",
                seen=f"length={length!r}, limit={limit!r}",
            )
        return self.at(length).largest(limit)

    def __repr__(self) -> str:
        return f"TokenLaw(traced at lengths {', '.join(map(str, self.lengths))})"


def fit_surface(probes: Mapping[tuple[int, int], Probe]) -> TokenLaw:
    """Fit every operation over (batch, length).

    Args:
        probes: Traces by (batch, length): two batches and three lengths at the least.

    Raises:
        UnidentifiedError: Too few, or not of the same operations.
    """
    batches, lengths = (sorted({key[i] for key in probes}) for i in (0, 1))
    if len(batches) < 2 or len(lengths) < 3:
        raise UnidentifiedError(
            "a law of batch and length needs 2 batches and 3 lengths",
            seen=f"{len(batches)} and {len(lengths)}",
        )
    if len({p.operations for p in probes.values()}) > 1:
        raise UnidentifiedError(
            "the step takes another way at another length",
            seen=str([len(p.operations) for p in probes.values()]),
            why="memory between the lengths traced cannot be told from it",
        )
    places = np.array(list(probes), float)
    b, t = places[:, 0], places[:, 1]
    columns = np.stack([np.ones_like(b), b, t, b * t, t * t, b * t * t], 1)
    scale = np.abs(columns).max(0)
    alive = np.array([p.bytes for p in probes.values()], float)
    found = np.linalg.lstsq(columns / scale, alive, rcond=None)[0]
    largest = max(probes, key=lambda key: key[0] * key[1])
    return TokenLaw(
        terms=found / scale[:, None],
        probe=probes[largest],
        lengths=tuple(lengths),
    )
