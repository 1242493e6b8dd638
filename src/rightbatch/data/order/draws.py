"""Orders known by name: shuffled epochs, in order, with replacement, Poisson."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Int64

from rightbatch.core.errors import SettingError
from rightbatch.data.order.epochs import Blocks, ShuffledEpochs
from rightbatch.data.order.order import Cursor, Cut, Order
from rightbatch.data.order.permutation import (
    Permutation,
    check_length,
    key_of,
    keys_at,
    uniform,
)


class Shuffled(Order):
    """Every epoch visits every example once, in an order of its own.

    Raises:
        SettingError: There are no examples, or more than 2**32.

    Example:
        >>> cut, after = Shuffled(5).cut(0, Cursor(), 3, stop=5)
        >>> len(set(cut.indices.tolist())), after.position
        (3, 3)
    """

    name, covers = "shuffled", True

    def __init__(self, length: int) -> None:
        check_length(length)
        self.length = length
        self._seed = -1
        self._examples: Callable[[int, int], Any] = np.arange
        self._seeds: Callable[[int, int], Any] = np.arange

    def cut(
        self, seed: int, cursor: Cursor, batch_size: int, stop: int
    ) -> tuple[Cut, Cursor]:
        """The next examples of the order."""
        if self._seed != seed:
            self._seed, key = seed, augment(seed)
            self._examples = self.examples(seed)
            self._seeds = Blocks(lambda a, b: keys_at(key, np.arange(a, b)))
        start, end = cursor.position, min(cursor.position + batch_size, stop)
        cut = Cut(indices=self._examples(start, end), seeds=self._seeds(start, end))
        return cut, cursor.behind(end)

    def examples(self, seed: int) -> Callable[[int, int], Int64[np.ndarray, " n"]]:
        """The examples from one position to before another."""
        return ShuffledEpochs(self.length, seed)


class Sequential(Shuffled):
    """Every epoch visits every example once, in the order of the data set."""

    name = "sequential"

    def examples(self, seed: int) -> Callable[[int, int], Int64[np.ndarray, " n"]]:
        """Positions themselves."""
        return Blocks(lambda start, stop: np.arange(start, stop) % self.length)


class Replacement(Shuffled):
    """Every draw is independent of all others; an epoch is as many draws as examples.

    What the theory of stochastic gradients assumes: no finite-population correction.
    """

    name, covers = "replacement", False

    def examples(self, seed: int) -> Callable[[int, int], Int64[np.ndarray, " n"]]:
        """A number below the length for each position."""
        key = key_of("replacement", seed)

        def drawn(start: int, stop: int) -> Int64[np.ndarray, " n"]:
            words = keys_at(key, np.arange(start, stop))
            return (uniform(words) * self.length).astype(np.int64)

        return Blocks(drawn)


class Poisson(Order):
    """Every example joins a step with probability B / N, independently.

    The number of examples of a step is random with mean B; each weighs 1 / B, so the
    step's mean is multiplied by n / B to be unbiased (``factor``). A step without any
    example is drawn again, and the factor makes up for that.

    References:
        Zhu and Wang 2019, "Poission subsampled Renyi differential privacy", ICML: the
        sampling that differential privacy's accounts assume.
    """

    name, covers = "poisson", False

    def __init__(self, length: int) -> None:
        check_length(length)
        self.length = length

    def check(self, batch_size: int) -> None:
        """B is a mean, at most the whole.

        Raises:
            SettingError: It is more.
        """
        if batch_size > self.length:
            raise SettingError(
                f"batch_size {batch_size} is more than the {self.length} examples",
                seen=f"batch_size={batch_size}, {self.length} examples",
                why="every example would have to join with a probability above 1",
                fix=f"batch_size={self.length} or less",
            )

    def cut(
        self, seed: int, cursor: Cursor, batch_size: int, stop: int
    ) -> tuple[Cut, Cursor]:
        """A random subset; the position moves by B, its mean size."""
        key = key_of("poisson", seed, cursor.position)
        filled = 1 - (1 - batch_size / self.length) ** self.length
        generator = np.random.Generator(np.random.Philox(key))
        count = 0
        while count == 0:
            count = int(generator.binomial(self.length, batch_size / self.length))
        # Given its size, the subset is uniform: the head of a permutation.
        chosen = Permutation(self.length, key)(np.arange(count))
        cut = Cut(
            indices=chosen,
            seeds=keys_at(key_of(augment(seed), key), np.arange(count)),
            # Times the probability that a draw is not empty, for those drawn again.
            factor=count / batch_size * filled,
        )
        return cut, cursor.behind(cursor.position + batch_size)


def augment(seed: int) -> int:
    """The key of the randomness that the examples themselves may use."""
    return key_of("augment", seed)


DRAWS: dict[str, type[Shuffled] | type[Poisson]] = {
    kind.name: kind for kind in (Shuffled, Sequential, Replacement, Poisson)
}
