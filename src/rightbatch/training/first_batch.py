"""What the first batches are looked at for: how the loss is read, what cutting changes.

Whatever fails in here is no error of the run, which may be legal all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rightbatch.core.guards import evaluating, preserved_rng, untouched
from rightbatch.core.text import first_line
from rightbatch.core.torch_private import out_of_memory
from rightbatch.core.trees import to_device
from rightbatch.job.loss import BOTH_MEANS, first_value, means_in, no_pair, scalar_loss
from rightbatch.training.equality import Equality, Slicing, compare
from rightbatch.training.gradient import BatchGradient, Part
from rightbatch.training.recovery import release

FEW = 8  # examples looked at, at most: the fewer, the more clearly the loss shows
TRIES = 4  # places in a batch where they are looked for, and batches [assumed]


class FirstBatch:
    """Looks at a few examples of the first batch, or of those after it.

    Args:
        gradient: Makes the passes; its loss may come to be read otherwise.
        slice_batch: ``(batch, start, stop, count) ->`` a part of it.
        pair: Whether to see what a pair of the loss is.
        equality: Whether to compare split and whole gradient.

    Attributes:
        equality: What the comparison has found, if it was made.
    """

    def __init__(
        self,
        gradient: BatchGradient,
        slice_batch: Slicing,
        *,
        pair: bool,
        equality: bool,
    ) -> None:
        self.gradient, self.slice_batch = gradient, slice_batch
        self.equality: Equality | None = None
        sharded = gradient.ranks.sharded  # where each pass is one of all ranks
        self._pair = pair and not sharded
        self._to_compare = TRIES * (equality and not sharded)
        # Ranks may meet in a pass, and then each must make as many as the others.
        self._tries = TRIES if gradient.ranks.size == 1 else 1

    def compare(self, pieces: Sequence[Part]) -> Equality | None:
        """Split and whole gradient of the first examples that have one, if any have."""
        for examples, count in self._places(pieces):
            equality = compare(
                self.gradient.ranks.network,
                self.gradient.loss,
                self.gradient.parameters,
                examples,
                count,
                self.slice_batch,
                dtype=self.gradient.dtype,
            )
            if equality is not None:
                return equality
        return None

    def compare_once(self, pieces: Callable[[], Sequence[Part]]) -> str:
        """Before the first batch that is split; the next, if it has nothing to compare.

        Args:
            pieces: Makes those of this batch.

        Returns:
            What is to be told, if anything is.
        """
        if not self._to_compare:
            return ""
        self._to_compare -= 1
        text, done = "", True
        try:
            self.equality = self.compare(pieces())
            done = self.equality is not None
            if self.equality is not None and self.equality.causes:
                text = str(self.equality)
        except Exception as error:
            if out_of_memory(error) is None:
                text = (
                    f"split and whole gradient were not compared: {first_line(error)}"
                )
            release(error)
        if all(there for (there,) in self.gradient.ranks.gather([done])):
            self._to_compare = 0
        return text

    def skip_comparison(self) -> None:
        """In a run that goes on it was made before."""
        self._to_compare = 0

    def reads_otherwise(self, pieces: Sequence[Part]) -> str:
        """Once for a loss that returns a pair: what is to be told if it is read anew.

        Raises:
            JobError: The pair is neither ``(sum, count)`` nor (mean, another mean).
        """
        if not self._pair:
            return ""
        self._pair = False
        means: dict[str, str] = {}
        try:
            for examples, count in self._places(pieces):
                means |= means_in(*self._pairs(examples, count))
        except Exception as error:  # not to be called with so few, or in eval mode
            release(error)
        ranks = self.gradient.ranks
        if not any(found for (found,) in ranks.gather([len(means)])):
            return ""
        error = no_pair(means)
        both = all(found == len(BOTH_MEANS) for (found,) in ranks.gather([len(means)]))
        if not both:
            raise error
        self.gradient.loss = first_value(self.gradient.loss)
        self._to_compare = self._to_compare and TRIES
        return (
            f"{error.what}: {error.seen}; its first value alone is taken, as the mean"
        )

    def _places(self, pieces: Sequence[Part]) -> Iterator[tuple[Any, int]]:
        """A few examples from several places of a batch, and how many.

        Never more of them than one piece holds.
        """
        few = min(FEW, max(piece.count for piece in pieces))
        places = [
            (piece, start)
            for piece in pieces
            for start in range(0, piece.count - few + 1, few)
            if piece.counts and few > 1
        ]
        for piece, start in places[:: max(1, -(-len(places) // self._tries))]:
            end = start + few
            yield self.slice_batch(piece.batch, start, end, piece.count), few

    def _pairs(self, examples: Any, count: int) -> list[tuple[float, float]]:
        """What the loss returns for two halves of some examples, and for both."""
        gradient, half = self.gradient, count // 2
        network = gradient.ranks.network
        pairs = []
        with preserved_rng(), untouched(network, ()), evaluating(network):
            for start, stop in ((0, half), (half, 2 * half), (0, 2 * half)):
                part = self.slice_batch(examples, start, stop, count)
                batch = to_device(part, gradient.device)
                value, n = scalar_loss(gradient.loss, network, batch, gradient.dtype)
                pairs.append((float(value), float(n or 0)))
        return pairs
