"""The order of an epoch as a function: any position of it in microseconds.

A Feistel cipher on the domain a x b >= N (Black and Rogaway 2002): the position is
written as (left, right), and each round adds a hash of one half to the other. Results
outside of [0, N) are enciphered again ("cycle walking"), fewer than one in sqrt(N).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt64

Words = UInt64[np.ndarray, " n"]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # splitmix64's increment [cited: Steele 2014]
_M1, _M2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)  # [cited]
_ONE = np.uint64(1)
_S27, _S30, _S31, _S32 = (np.uint64(s) for s in (27, 30, 31, 32))

# Rounds by length: pairs of places cannot be told from random ones over a million keys
# (4 rounds: chi-squared scores of 8 to 1600 up to length 200, 6 up to 70 below 100, 8
# below 16). [measured: tests/test_permutation.py]
ROUNDS, ROUNDS_SHORT, ROUNDS_SHORTEST = 6, 8, 12
SHORT, SHORTEST = 1024, 64
LONGEST = 1 << 62  # so that a half and its hash multiply within 64 bits [derived]


def key_of(*parts: int | str) -> int:
    """A 64-bit key that any change of any part changes wholly.

    Hashed, not added: seed 5 in epoch 1 must not repeat seed 6 in epoch 0.

    Example:
        >>> key_of(5, 1) == key_of(6, 0)
        False
    """
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def mix(words: Words) -> Words:
    """The splitmix64 finalizer: every bit of the result depends on every bit."""
    scratch = words >> _S30
    mixed = words ^ scratch
    mixed *= _M1
    mixed ^= np.right_shift(mixed, _S27, out=scratch)
    mixed *= _M2
    mixed ^= np.right_shift(mixed, _S31, out=scratch)
    return mixed


def keys_at(key: int | Words, numbers: np.ndarray) -> Words:
    """One 64-bit key for each number, shape ``(n,)``, from a common one or each own."""
    return mix(
        np.asarray(key, np.uint64) + (numbers.astype(np.uint64) + _ONE) * _GOLDEN
    )


def below(words: Words, bound: Words | np.uint64) -> Words:
    """Uniform words made uniform in ``[0, bound)``: the high half of their product."""
    mask = np.uint64(0xFFFFFFFF)
    high, low = words >> _S32, words & mask
    b_high, b_low = bound >> _S32, bound & mask
    middle = high * b_low + ((low * b_low) >> _S32)
    carry = (middle & mask) + low * b_high
    return high * b_high + (middle >> _S32) + (carry >> _S32)


def rounds_for(length: int) -> int:
    """Enough rounds to look random at this length."""
    if length < SHORTEST:
        return ROUNDS_SHORTEST
    return ROUNDS_SHORT if length < SHORT else ROUNDS


def permute(
    positions: Int64[np.ndarray, " n"],
    lengths: int | Int64[np.ndarray, " n"],
    keys: int | Words,
    rounds: int = ROUNDS_SHORTEST,
) -> Int64[np.ndarray, " n"]:
    """Where each position goes under the permutation that its key chooses.

    Args:
        positions: In ``[0, length)``, each in its own.
        lengths: Of each permutation, or of all.
        keys: Of each permutation, or of all.
        rounds: Fewer are faster; more look random at smaller lengths.
    """
    size = np.asarray(lengths, dtype=np.uint64)
    key = np.asarray(keys, dtype=np.uint64)
    left_size = np.ceil(np.sqrt(size.astype(np.float64))).astype(np.uint64)
    left_size += (left_size * left_size < size).astype(np.uint64)  # rounded down
    left_size -= ((left_size - _ONE) * (left_size - _ONE) >= size).astype(np.uint64)
    right_size = (size + left_size - np.uint64(1)) // left_size
    with np.errstate(over="ignore"):
        schedule = [mix(np.atleast_1d(key + np.uint64(i + 1) * _GOLDEN))
                    for i in range(rounds)]  # fmt: skip
        found = _feistel(positions.astype(np.uint64), left_size, right_size, schedule)
        while len(out := np.flatnonzero(found >= size)):
            at = lambda x: x[out] if x.ndim and len(x) > 1 else x  # ruff: ignore[lambda-assignment]
            found[out] = _feistel(
                found[out], at(left_size), at(right_size), [at(k) for k in schedule]
            )
    return found.astype(np.int64)


def _feistel(
    x: Words, left_size: np.ndarray, right_size: np.ndarray, keys: list[Words]
) -> Words:
    """Encipher once: a bijection of ``[0, left_size * right_size)``."""
    left = x // right_size
    right = x - left * right_size
    for number, key in enumerate(keys):
        if number % 2:
            left, right, size = right, left, right_size
        else:
            size = left_size
        step = mix(right ^ key)
        step >>= _S32
        step *= size
        step >>= _S32
        left += step
        # Unsigned: where left < size the difference wraps around and is the larger.
        np.minimum(left, np.subtract(left, size, out=step), out=left)
        if number % 2:
            left, right = right, left
    return left * right_size + right


@dataclass(frozen=True, slots=True)
class Permutation:
    """A random order of ``[0, length)`` that needs no memory.

    Statistically like a random permutation where it matters here: the mean over a batch
    of data in any order on disk has the variance of a random batch. Not a cipher.

    Attributes:
        length: N, from 1 to 2**62.
        seed: Together with ``epoch`` and ``length`` chooses the order.
        epoch: Each one has an order of its own.

    Raises:
        ValueError: ``length`` is out of range.

    Example:
        >>> order = Permutation(10**10, seed=0, epoch=3)
        >>> order(np.array([0, 5 * 10**9])).shape
        (2,)
        >>> sorted(Permutation(5, seed=1)(np.arange(5)).tolist())
        [0, 1, 2, 3, 4]

    References:
        Black and Rogaway 2002, "Ciphers with arbitrary finite domains".
    """

    length: int
    seed: int = 0
    epoch: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.length <= LONGEST:
            raise ValueError(f"length {self.length} is not between 1 and 2**62")

    def __call__(self, positions: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """The examples at these positions of the order."""
        key = key_of("epoch", self.seed, self.epoch, self.length)
        return permute(positions, self.length, key, rounds_for(self.length))


class Blocks:
    """A function of positions, read mostly forward: the block around is kept.

    Args:
        function: From first and last-but-one position to its values there: an array
            or a list.
        ends: Blocks do not reach over multiples of this.
    """

    SIZE = 8192  # fastest: the work fits the cache [measured: benchmarks/feed.py]

    def __init__(
        self, function: Callable[[int, int], Any], ends: int = 1 << 62
    ) -> None:
        self._function, self._ends = function, ends
        self._start, self._stop, self._block = 0, 0, function(0, 0)

    def __call__(self, start: int, stop: int) -> Any:
        """Its values from position ``start`` to before ``stop``."""
        if self._start <= start and stop <= self._stop:
            return self._block[start - self._start : stop - self._start]
        parts = []
        while start < stop:
            if not self._start <= start < self._stop:
                self._fill(start)
            until = min(stop, self._stop)
            parts.append(self._block[start - self._start : until - self._start])
            start = until
        if isinstance(self._block, list):
            return [value for part in parts for value in part]
        return np.concatenate(parts) if parts else self._block[:0]

    def _fill(self, start: int) -> None:
        # Blocks begin at multiples, so that stepping back and forth fills few.
        round_, offset = divmod(start, self._ends)
        first = offset - offset % self.SIZE
        stop = min(first + self.SIZE, self._ends)
        self._start, self._stop = (
            round_ * self._ends + first,
            round_ * self._ends + stop,
        )
        self._block = self._function(self._start, self._stop)


class Walk:
    """An endless order of epochs.

    Args:
        length: Examples in an epoch.
        seed: Chooses the orders.

    Example:
        >>> walk = Walk(3, seed=0)
        >>> sorted(walk(3, 6).tolist())  # the second epoch
        [0, 1, 2]
    """

    def __init__(self, length: int, seed: int) -> None:
        self.length, self.seed = length, seed
        self._blocks = Blocks(self._order, ends=length)

    def __call__(self, start: int, stop: int) -> Int64[np.ndarray, " n"]:
        """Examples from position ``start`` to before ``stop``, over all epochs."""
        return self._blocks(start, stop)

    def _order(self, start: int, stop: int) -> Int64[np.ndarray, " n"]:
        epoch, first = divmod(start, self.length)
        positions = np.arange(first, first + stop - start)
        return Permutation(self.length, self.seed, epoch)(positions)
