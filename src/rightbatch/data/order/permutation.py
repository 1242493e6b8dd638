"""The order of an epoch as a function: any position of it in microseconds.

A Feistel cipher on the domain a x b >= N (Black and Rogaway 2002): the position is
written as (left, right), and each round adds a hash of one half to the other. Results
outside of [0, N) are enciphered again ("cycle walking"), fewer than one in sqrt(N).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64, UInt64

from rightbatch.core.errors import SettingError

Words = UInt64[np.ndarray, " n"]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # splitmix64's increment [cited: Steele 2014]
_M1, _M2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)  # [cited]
_S27, _S30, _S31 = (np.uint64(s) for s in (27, 30, 31))
# The hash of a round, "lowbias32". [cited: Wellons 2018]
_SHIFTS = np.uint32(16), np.uint32(15)
_FACTORS = np.uint32(0x7FEB352D), np.uint32(0x846CA68B)
_HALF, _LOW_HALF = np.uint32(16), np.uint32(0xFFFF)

# Words of 32 bits are four times as fast as those of 64, because processors multiply
# eight at once [measured: benchmarks/feed.py]: so there are at most 2**32 examples.
LONGEST = 1 << 32

# Rounds below a length. Short orders: pairs of places cannot be told from random ones
# over a million keys (4 rounds: chi-squared scores of 8 to 1600 up to length 200, 6 up
# to 70 below 100, 8 below 16). Long ones: the mean over a batch has the variance and
# the fourth moment of a random batch's, whatever the data set is ordered by (3 rounds:
# 1.2 to 1.3 times the variance where columns are alike, 4 to 6: 1.00).
# [measured: tests/data/order/test_permutation.py]
ROUNDS = ((64, 12), (1024, 8), (1 << 16, 6))
ROUNDS_SHORTEST, ROUNDS_LONG = ROUNDS[0][1], 4


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
    """One 64-bit key for each number, shape ``(n,)``, from one key or one for each."""
    after = numbers.astype(np.uint64) + np.uint64(1)
    return mix(np.asarray(key, np.uint64) + after * _GOLDEN)


def uniform(words: Words) -> Float64[np.ndarray, " n"]:
    """Numbers in [0, 1), one from each word, with 53 random bits."""
    return (words >> np.uint64(11)) * 2.0**-53


def rounds_for(length: int) -> int:
    """Enough rounds to look random at this length."""
    return next((rounds for below, rounds in ROUNDS if length < below), ROUNDS_LONG)


def permute(
    positions: Int64[np.ndarray, " n"],
    lengths: int | Int64[np.ndarray, " n"],
    keys: int | Words,
    rounds: int = ROUNDS_SHORTEST,
) -> Int64[np.ndarray, " n"]:
    """Where each position goes under the permutation that its key chooses.

    Args:
        positions: In ``[0, length)``, each in its own.
        lengths: Of each permutation, or of all; at most 2**32.
        keys: Of each permutation, or of all.
        rounds: Fewer are faster; more look random at smaller lengths.
    """
    size, key = np.asarray(lengths, dtype=np.int64), np.asarray(keys, dtype=np.uint64)
    rows = np.ceil(np.sqrt(size)).astype(np.int64)
    columns = (-(-size // rows)).astype(np.uint32)
    rows, last = rows.astype(np.uint32), (size - 1).astype(np.uint32)
    numbers = np.arange(1, 2 * rounds + 1, dtype=np.uint64) * _GOLDEN
    # Two words for each round from each key.
    words = mix(key + numbers.reshape(-1, *[1] * key.ndim)).astype(np.uint32)
    places = _feistel(positions.astype(np.uint32), rows, columns, words)
    out = np.flatnonzero(places > last)
    while len(out):  # again, those that are not in the order
        places[out] = _feistel(
            places[out],
            rows[out] if rows.ndim else rows,
            columns[out] if columns.ndim else columns,
            words[:, out] if words.ndim > 1 else words,
        )
        out = out[places[out] > (last[out] if last.ndim else last)]
    return places.astype(np.int64)


def _feistel(
    x: np.ndarray, rows: np.ndarray, columns: np.ndarray, words: np.ndarray
) -> np.ndarray:
    """Encipher once: a bijection of ``[0, rows * columns)``.

    A round adds ``floor(hash * size / 2**32)`` to one half, modulo its size.
    """
    left = x // columns
    right = x - left * columns
    hashed, step = np.empty_like(left), np.empty_like(left)
    for number in range(len(words) // 2):
        size = columns if number % 2 else rows
        np.bitwise_xor(right, words[2 * number], out=hashed)
        hashed ^= np.right_shift(hashed, _SHIFTS[0], out=step)
        hashed *= _FACTORS[0]
        hashed ^= np.right_shift(hashed, _SHIFTS[1], out=step)
        hashed += words[2 * number + 1]
        hashed *= _FACTORS[1]
        # The high half of hash * size, put together of products that fit a word.
        np.right_shift(hashed, _HALF, out=step)
        step *= size
        hashed &= _LOW_HALF
        hashed *= size
        hashed >>= _HALF
        step += hashed
        step >>= _HALF
        left += step
        # Unsigned: where left < size the difference wraps around and is the larger.
        np.minimum(left, np.subtract(left, size, out=step), out=left)
        left, right = right, left
    if len(words) // 2 % 2:
        left, right = right, left
    return left * columns + right


def check_length(length: int) -> None:
    """Refuse a data set that cannot be put in order.

    Raises:
        SettingError: It is empty, or has more than 2**32 examples.
    """
    if not 1 <= length <= LONGEST:
        raise SettingError(
            "an order has between 1 and 2**32 examples",
            seen=f"{length} examples",
            fix="larger examples, such as blocks of tokens, or shards: ShardStream",
        )


@dataclass(frozen=True, slots=True)
class Permutation:
    """A random order of ``[0, length)`` that needs no memory.

    Statistically like a random permutation where it matters here: the mean over a batch
    of data in any order on disk has the variance of a random batch. Not a cipher.

    Attributes:
        length: N, from 1 to 2**32.
        seed: Together with ``epoch`` and ``length`` chooses the order.
        epoch: Each one has an order of its own.

    Raises:
        SettingError: ``length`` is out of range.

    Example:
        >>> order = Permutation(4 * 10**9, seed=0, epoch=3)
        >>> order(np.array([0, 2 * 10**9])).shape
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
        check_length(self.length)

    def __call__(self, positions: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """The examples at these positions of the order.

        Raises:
            IndexError: A position is not in ``[0, length)``.
        """
        if len(positions) and not (
            positions.min() >= 0 and positions.max() < self.length
        ):
            raise IndexError(f"positions must be from 0 to {self.length - 1}")
        key = key_of("epoch", self.seed, self.epoch, self.length)
        return permute(positions, self.length, key, rounds_for(self.length))
