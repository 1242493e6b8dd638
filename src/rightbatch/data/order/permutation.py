"""The order of an epoch as a function: any position of it in microseconds.

A Feistel cipher on the domain a x b >= N (Black and Rogaway 2002): the position is
written as (left, right), and each round adds a hash of one half to the other. Results
outside of [0, N) are enciphered again ("cycle walking"), fewer than one in sqrt(N).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64, UInt64

Words = UInt64[np.ndarray, " n"]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # splitmix64's increment [cited: Steele 2014]
_M1, _M2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)  # [cited]
_ONE = np.uint64(1)
_S27, _S30, _S31, _S32 = (np.uint64(s) for s in (27, 30, 31, 32))


class _Width(NamedTuple):
    """The words that a round computes with, and its hash's constants in them.

    Attributes:
        word: numpy's type of them.
        half: Half their bits: what fits there can be multiplied.
        shifts: Of the hash.
        factors: Of the hash.
    """

    word: Any
    half: int
    shifts: tuple[int, int]
    factors: tuple[int, int]


# Below 2**32 half the bits do, and are four times as fast: processors multiply eight
# such words at once. [measured: benchmarks/feed.py]
NARROW = 1 << 32
# Their hash is "lowbias32". [cited: Wellons 2018]
_NARROW = _Width(np.uint32, 16, (16, 15), (0x7FEB352D, 0x846CA68B))
_WIDE = _Width(np.uint64, 32, (30, 27), (int(_M1), int(_M2)))

# Rounds below a length. Short orders: pairs of places cannot be told from random ones
# over a million keys (4 rounds: chi-squared scores of 8 to 1600 up to length 200, 6 up
# to 70 below 100, 8 below 16). Long ones: the mean over a batch has the variance and
# the fourth moment of a random batch's, whatever the data set is ordered by (3 rounds:
# 1.2 to 1.3 times the variance where columns are alike, 4 to 6: 1.00).
# [measured: tests/test_permutation.py]
ROUNDS = ((64, 12), (1024, 8), (1 << 16, 6))
ROUNDS_SHORTEST, ROUNDS_LONG = ROUNDS[0][1], 4
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
        lengths: Of each permutation, or of all.
        keys: Of each permutation, or of all.
        rounds: Fewer are faster; more look random at smaller lengths.
    """
    size, key = np.asarray(lengths, dtype=np.uint64), np.asarray(keys, dtype=np.uint64)
    long = size > NARROW
    if long.any() and not long.all():  # each by its own length alone
        found = np.empty(len(positions), dtype=np.int64)
        for part in (long, ~long):
            own = key[part] if key.ndim else key
            found[part] = _permute(positions[part], size[part], own, rounds)
        return found
    return _permute(positions, size, key, rounds)


def _permute(
    positions: Int64[np.ndarray, " n"], size: np.ndarray, key: np.ndarray, rounds: int
) -> Int64[np.ndarray, " n"]:
    """The same for lengths that are all narrow or all wide."""
    width = _WIDE if size.max(initial=0) > NARROW else _NARROW
    rows = np.ceil(np.sqrt(size.astype(np.float64))).astype(np.uint64)
    rows += (rows * rows < size).astype(np.uint64)  # rounded down
    rows -= ((rows - _ONE) * (rows - _ONE) >= size).astype(np.uint64)
    columns = ((size + rows - _ONE) // rows).astype(width.word)
    rows, last = rows.astype(width.word), (size - _ONE).astype(width.word)
    with np.errstate(over="ignore"):
        schedule = _schedule(key, rounds).astype(width.word)
        found = _feistel(positions.astype(width.word), rows, columns, schedule, width)
        out = np.flatnonzero(found > last)
        while len(out):  # again, those that are not in the order
            found[out] = _feistel(
                found[out],
                rows[out] if rows.ndim else rows,
                columns[out] if columns.ndim else columns,
                schedule[:, out] if schedule.ndim > 1 else schedule,
                width,
            )
            out = out[found[out] > (last[out] if last.ndim else last)]
    return found.astype(np.int64)


def _schedule(key: np.ndarray, rounds: int) -> UInt64[np.ndarray, ...]:
    """Two words for each round from each key, shape ``(2 * rounds, *key.shape)``."""
    numbers = np.arange(1, 2 * rounds + 1, dtype=np.uint64) * _GOLDEN
    return mix(key + numbers.reshape(-1, *[1] * key.ndim))


def _feistel(
    x: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    schedule: np.ndarray,
    width: _Width,
) -> np.ndarray:
    """Encipher once: a bijection of ``[0, rows * columns)``.

    A round adds ``floor(hash * size / 2**bits)`` to one half, modulo its size.
    """
    first, second = (width.word(s) for s in width.shifts)
    by, then = (width.word(f) for f in width.factors)
    half, mask = width.word(width.half), width.word((1 << width.half) - 1)
    left = x // columns
    right = x - left * columns
    hashed, step = np.empty_like(left), np.empty_like(left)
    for number in range(len(schedule) // 2):
        size = columns if number % 2 else rows
        np.bitwise_xor(right, schedule[2 * number], out=hashed)
        hashed ^= np.right_shift(hashed, first, out=step)
        hashed *= by
        hashed ^= np.right_shift(hashed, second, out=step)
        hashed += schedule[2 * number + 1]
        hashed *= then
        # The high half of hash * size, put together of products that fit a word.
        np.right_shift(hashed, half, out=step)
        step *= size
        hashed &= mask
        hashed *= size
        hashed >>= half
        step += hashed
        step >>= half
        left += step
        # Unsigned: where left < size the difference wraps around and is the larger.
        np.minimum(left, np.subtract(left, size, out=step), out=left)
        left, right = right, left
    if len(schedule) // 2 % 2:
        left, right = right, left
    return left * columns + right


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
