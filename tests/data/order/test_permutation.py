"""The order of an epoch: a bijection, and for noise as good as a random one."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
import rightbatch as rb
from rightbatch.data.order.draws import Poisson, Shuffled
from rightbatch.data.order.permutation import (
    Permutation,
    key_of,
    permute,
    rounds_for,
)


@pytest.mark.parametrize(
    "length", [*range(1, 70), 255, 256, 257, 1023, 65_535, 65_536, 65_537, 262_145]
)
def test_every_position_has_its_own_example(length: int) -> None:
    order = Permutation(length, seed=3, epoch=2)(np.arange(length))
    assert (np.sort(order) == np.arange(length)).all()


@settings(deadline=None, max_examples=60)
@given(
    st.one_of(
        st.integers(1, 5000),
        st.integers(2**32 - 3, 2**32),
        st.integers(1, 1 << 32),
    ),
    st.integers(0, 1 << 40),
    st.integers(0, 50),
    st.data(),
)
def test_it_is_the_cipher_as_written_down(
    length: int, seed: int, epoch: int, data: st.DataObject
) -> None:
    places = data.draw(st.lists(st.integers(0, length - 1), min_size=1, max_size=5))
    fast = Permutation(length, seed, epoch)(np.array(places, dtype=np.int64))
    slow = [reference.permuted(p, length, seed, epoch) for p in places]
    assert fast.tolist() == slow


@pytest.mark.parametrize("length", [2**31 + 1, 2**32 - 1, 2**32])
def test_in_long_orders_nothing_collides(length: int) -> None:
    places = np.unique(np.random.default_rng(0).integers(0, length, 100_000))
    order = Permutation(length, seed=1)(places)
    assert len(np.unique(order)) == len(places)
    assert 0 <= order.min() <= order.max() < length
    # Uniform: the mean of 100,000 has a standard error of 0.0009.
    assert abs(order.mean() / length - 0.5) < 0.004


def test_elementwise_keys_and_lengths_are_those_of_each() -> None:
    lengths = np.array([1, 2, 7, 100, 10**9, 2**32])
    keys = np.arange(6, dtype=np.uint64)
    alone = [
        int(permute(lengths[i : i + 1] - 1, int(lengths[i]), int(keys[i]))[0])
        for i in range(6)
    ]
    assert permute(lengths - 1, lengths, keys).tolist() == alone
    common = permute(lengths - 1, lengths, 5)
    assert common.tolist() == [
        int(permute(lengths[i : i + 1] - 1, int(lengths[i]), 5)[0]) for i in range(6)
    ]


@pytest.mark.parametrize(
    ("length", "batch", "epochs"),
    [
        (1000, 20, 800),
        pytest.param(1 << 16, 256, 160, marks=pytest.mark.slow),
        pytest.param(1_000_000, 256, 24, marks=pytest.mark.slow),
    ],
)
def test_batches_are_random_whatever_the_data_is_ordered_by(
    length: int, batch: int, epochs: int
) -> None:
    """Variance and fourth moment of batch means, for features of a place.

    The cipher's own rows and columns among them: 3 rounds give 1.19 for columns. 4
    rounds of a Simon cipher give 0.14 to 0.26 for data in class order. 94,000 batches
    at length 10**6, 40,000 at the others: the variance has a standard error of 0.5 and
    0.7 %, the fourth moment of 1.1 and 1.6 %.
    """
    place = np.arange(length)
    columns = -(-length // math.ceil(math.sqrt(length)))
    features = (
        place * 10 // length,
        np.cos(2 * np.pi * (place % columns) / columns),
        place // columns % 2,
        place % 2,
        place // 256 % 2,
    )
    steps = length // batch
    scale = math.sqrt((length - 1) * batch / (length - batch))
    means: list[list[np.ndarray]] = [[] for _ in features]
    for epoch in range(epochs):
        order = Permutation(length, 1, epoch)(place)[: steps * batch]
        for feature, found in zip(features, means, strict=True):
            scaled = ((feature - feature.mean()) / feature.std()).astype(np.float32)
            found.append(scaled[order].reshape(steps, batch).mean(1) * scale)
    for found in means:
        values = np.concatenate(found).astype(np.float64)
        assert abs(np.mean(values**2) - 1) < 0.03
        # A mean over B draws has the kurtosis 3 - O(1 / B): -2 / B for two values.
        assert abs(np.mean(values**4) / 3 - 1) < 0.07


@pytest.mark.parametrize("length", [1000, 60_000, 65_537])
def test_neighbours_and_epochs_are_uncorrelated(length: int) -> None:
    scores = []
    for epoch in range(20):
        now = Permutation(length, 5, epoch)(np.arange(length))
        then = Permutation(length, 5, epoch + 1)(np.arange(length))
        for a, b in ((now[1:], now[:-1]), (now[7:], now[:-7]), (now, then)):
            scores.append(np.corrcoef(a, b)[0, 1] * math.sqrt(length))
    # 60 standard normal numbers: the largest is below 4 in 99.6 % of all cases.
    assert np.abs(scores).max() < 4
    assert 0.6 < np.std(scores) < 1.4


@pytest.mark.slow
@pytest.mark.parametrize("length", [3, 5, 7, 10, 16, 30, 63, 64, 100, 1024])
def test_pairs_of_a_short_order_are_uniform(length: int) -> None:
    """Chi-squared over all pairs of values at two places, over many keys.

    300 keys a pair, or a million: the score is standard normal (4 rounds: 11 to 1600).
    """
    count = min(300 * length * length, 1_000_000)
    keys = np.random.default_rng(1).integers(0, 2**64, count, dtype=np.uint64)
    rounds = rounds_for(length)
    side = -(-length // math.ceil(math.sqrt(length)))

    def at(place: int) -> np.ndarray:
        return permute(np.full(count, place), length, keys, rounds)

    for other in {1, min(side, length - 1)}:
        pairs = np.bincount(at(0) * length + at(other), minlength=length**2)
        off = pairs.reshape(length, length)[~np.eye(length, dtype=bool)]
        expected, freedom = count / len(off), len(off) - 1
        score = ((off - expected) ** 2 / expected).sum() - freedom
        assert abs(score) / math.sqrt(2 * freedom) < 5


def test_no_two_orders_share_a_key() -> None:
    assert key_of(5, 1) != key_of(6, 0)
    assert key_of("a", 12) != key_of("a", 1, 2)
    first = Permutation(1000, seed=5, epoch=1)(np.arange(1000))
    assert not (first == Permutation(1000, seed=6, epoch=0)(np.arange(1000))).all()
    shorter = Permutation(999, seed=5, epoch=1)(np.arange(999))
    assert (first[:999] == shorter).mean() < 0.1


@pytest.mark.parametrize("position", [-1, 10, 2**40])
def test_positions_out_of_range_are_refused(position: int) -> None:
    with pytest.raises(IndexError, match="from 0 to 9"):
        Permutation(10)(np.array([3, position]))


@pytest.mark.parametrize("length", [0, -1, 2**32 + 1])
def test_lengths_out_of_range_are_refused(length: int) -> None:
    for make in (Permutation, Shuffled, Poisson):
        with pytest.raises(rb.SettingError, match=r"between 1 and 2\*\*32"):
            make(length)
