"""The endless order is the epochs one after another."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rightbatch.data.order.epochs import ShuffledEpochs
from rightbatch.data.order.permutation import Permutation


@settings(deadline=None)
@given(
    st.integers(1, 30_000),
    st.lists(st.tuples(st.integers(0, 90_000), st.integers(0, 40)), max_size=5),
)
def test_the_endless_order_is_the_epochs_one_after_another(
    length: int, cuts: list[tuple[int, int]]
) -> None:
    order = ShuffledEpochs(length, seed=9)
    for start, count in cuts:
        places = np.arange(start, start + count)
        expected = [
            int(Permutation(length, 9, p // length)(np.array([p % length]))[0])
            for p in places.tolist()
        ]
        assert order(start, start + count).tolist() == expected
        assert order.at(places).tolist() == expected
