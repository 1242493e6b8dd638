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
        self._pairs_to_read = TRIES * (pair and not sharded)
        self._to_compare = TRIES * (equality and not sharded)
        # Ranks may meet in a pass, and then each must make as many as the others.
        self._tries = TRIES if gradient.ranks.size == 1 else 1

    def compare(
        self, pieces: Sequence[Part], few: int | None = None
    ) -> Equality | None:
        """Split and whole gradient of the first examples that have one, if any have.

        Args:
            pieces: Of a batch.
            few: How many examples are looked at; default: as many as can be.
        """
        for examples, count in self._places(pieces, few or _few(pieces)):
            equality = compare(self.gradient, examples, count, self.slice_batch)
            if equality is not None:
                return equality
        return None

    def compare_once(self, pieces: Callable[[], Sequence[Part]], splits: bool) -> str:
        """Before the first batch that is split; the next, if it has nothing to compare.

        Collective until it was made: ranks whose batches differ by an example are not
        split alike, and what one does all do.

        Args:
            pieces: Makes those of this batch.
            splits: Whether there are several on this rank.

        Returns:
            What is to be told, if anything is.
        """
        if not self._to_compare:
            return ""
        if not any(split for (split,) in self.gradient.ranks.gather([splits])):
            return ""
        self._to_compare -= 1
        text, done = "", True
        cut = pieces()
        few = self._agreed(_few(cut))
        try:
            self.equality = self.compare(cut, few)
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
        """For a loss that returns a pair: what is to be told if it is read anew.

        Once; again with the next batch, where this one tells nothing.

        Raises:
            JobError: The pair is neither ``(sum, count)`` nor (mean, another mean).
        """
        if not self._pairs_to_read:
            return ""
        self._pairs_to_read -= 1
        ranks, few = self.gradient.ranks, self._agreed(_few(pieces))
        found: list[dict[str, str]] = []
        try:
            for examples, count in self._places(pieces, few):
                if (means := self._means(examples, count)) is not None:
                    found.append(means)
        except Exception as error:  # not to be called with so few, or in eval mode
            release(error)
        means = found[0] if found else {}
        means = {k: v for k, v in means.items() if all(k in other for other in found)}
        numbers, told = zip(*ranks.gather([len(means), len(found)]), strict=True)
        if all(told):
            self._pairs_to_read = 0
        if not any(numbers):
            return ""
        error = no_pair(means)
        if min(numbers) < len(BOTH_MEANS):
            raise error
        self.gradient.loss = first_value(self.gradient.loss)
        self._to_compare = self._to_compare and TRIES
        return (
            f"{error.what}: {error.seen}; its first value alone is taken, as the mean"
        )

    def _agreed(self, few: int) -> int:
        """As many as every rank has."""
        return int(min(number for (number,) in self.gradient.ranks.gather([few])))

    def _places(self, pieces: Sequence[Part], few: int) -> Iterator[tuple[Any, int]]:
        """So many examples from several places of a batch, and how many."""
        places = [
            (piece, start)
            for piece in pieces
            for start in range(0, piece.count - few + 1, few)
            if piece.counts and few > 1
        ]
        for piece, start in places[:: max(1, -(-len(places) // self._tries))]:
            end = start + few
            yield self.slice_batch(piece.batch, start, end, piece.count), few

    def _means(self, examples: Any, count: int) -> dict[str, str] | None:
        """Which values of the loss's pair are means, by some examples."""
        gradient, network = self.gradient, self.gradient.ranks.network

        def pair(start: int, stop: int) -> tuple[float, float]:
            part = self.slice_batch(examples, start, stop, count)
            batch = to_device(part, gradient.device)
            value, n = scalar_loss(gradient.loss, network, batch, gradient.dtype)
            return float(value), float(n or 0)

        with preserved_rng(), untouched(network, ()), evaluating(network):
            return means_in(pair, count)


def _few(pieces: Sequence[Part]) -> int:
    """Examples to look at: never more at once than one piece holds."""
    return min(FEW, max(piece.count for piece in pieces))
