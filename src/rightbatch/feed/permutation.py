"""The order of an epoch as a function: any position of it in microseconds.

A Feistel cipher on the domain a x b >= N (Black and Rogaway 2002): the position is
written as (left, right), and each round adds a hash of one half to the other. Results
outside of [0, N) are enciphered again ("cycle walking"), fewer than one in sqrt(N).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, UInt64

Words = UInt64[np.ndarray, " n"]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # splitmix64's increment [cited: Steele 2014]
_M1, _M2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)  # [cited]
_ONE = np.uint64(1)
_S27, _S30, _S31, _S32 = (np.uint64(s) for s in (27, 30, 31, 32))

# Rounds until pairs of neighbours cannot be told from random ones in 1.5 million keys:
# 8 from length 16 on, 12 for all. [measured: tests/test_permutation.py; 4 rounds fail]
ROUNDS, ROUNDS_SMALL, SMALL = 8, 12, 64
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
    words = words ^ (words >> _S30)
    words *= _M1
    words ^= words >> _S27
    words *= _M2
    words ^= words >> _S31
    return words


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


def permute(
    positions: Int64[np.ndarray, " n"],
    lengths: int | Int64[np.ndarray, " n"],
    keys: int | Words,
    rounds: int = ROUNDS_SMALL,
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
        left += ((mix(right ^ key) >> _S32) * size) >> _S32
        # Unsigned: where left < size the difference wraps around and is the larger.
        left = np.minimum(left, left - size)
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
        rounds = ROUNDS_SMALL if self.length < SMALL else ROUNDS
        return permute(positions, self.length, key, rounds)


class Walk:
    """An endless order of epochs, read mostly forward: blocks of it are kept.

    Args:
        length: Examples in an epoch.
        seed: Chooses the orders.

    Example:
        >>> walk = Walk(3, seed=0)
        >>> sorted(walk(3, 6).tolist())  # the second epoch
        [0, 1, 2]
    """

    BLOCK = 8192  # fastest: the work fits the cache [measured: benchmarks/feed.py]

    def __init__(self, length: int, seed: int) -> None:
        self.length, self.seed = length, seed
        self._start, self._block = 0, np.empty(0, dtype=np.int64)

    def __call__(self, start: int, stop: int) -> Int64[np.ndarray, " n"]:
        """Examples from position ``start`` to before ``stop``, over all epochs."""
        parts = []
        while start < stop:
            at = start - self._start
            if not 0 <= at < len(self._block):
                self._fill(start)
                at = start - self._start
            parts.append(self._block[at : at + stop - start])
            start += len(parts[-1])
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

    def _fill(self, start: int) -> None:
        epoch, offset = divmod(start, self.length)
        # Blocks begin at multiples, so that stepping back and forth fills few.
        first = offset - offset % self.BLOCK
        positions = np.arange(first, min(first + self.BLOCK, self.length))
        self._block = Permutation(self.length, self.seed, epoch)(positions)
        self._start = epoch * self.length + first
