"""Counts of strata: whole, within limits, and best by Neyman's rule."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import rightbatch as rb
from rightbatch.data.order.allocation import allocate, batch_variance


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 500), min_size=1, max_size=9),
    st.integers(1, 300),
    st.sampled_from([1, 2, 8]),
    st.data(),
)
def test_allocated_counts_fill_the_batch_and_fit_the_strata(
    sizes: list[int], batch: int, multiple: int, data: st.DataObject
) -> None:
    wanted = data.draw(
        st.lists(st.floats(0.01, 1e6), min_size=len(sizes), max_size=len(sizes))
    )
    have = np.array(sizes)
    if batch < len(sizes) or batch > sum(sizes):
        with pytest.raises(rb.SettingError):
            allocate(np.array(wanted), batch, have, multiple)
        return
    counts = allocate(np.array(wanted), batch, have, multiple)
    assert counts.sum() == batch
    assert (counts >= 1).all()
    assert (counts <= have).all()
    free = (counts > 1) & (counts < have)
    if multiple == 1 and free.sum() > 1:
        scale = counts[free] / np.array(wanted)[free]
        slack = 1.01 / np.array(wanted)[free]  # rounding, one either way
        assert (scale.max() - slack[scale.argmax()]) <= (
            scale.min() + slack[scale.argmin()]
        )


def test_neyman_beats_every_other_allocation() -> None:
    sizes, stds = np.array([50, 300, 650]), np.array([9.0, 1.0, 0.2])
    best = batch_variance(sizes, allocate(sizes * stds, 24, sizes), stds)
    for a in range(1, 23):
        for b in range(1, 24 - a):
            counts = np.array([a, b, 24 - a - b])
            assert best <= batch_variance(sizes, counts, stds) * 1.001


def test_multiples_are_given_up_where_they_do_not_fit() -> None:
    assert allocate(np.ones(2), 24, np.array([15, 15]), 8).tolist() == [12, 12]
    with pytest.raises(rb.SettingError, match="no effect on fixed"):
        rb.data.Strata([0] * 9 + [1] * 9, {1: 8}, multiple=8)
    with pytest.raises(rb.SettingError, match=r"batch_size from 9 to 11"):
        rb.BatchStream(
            (torch.arange(13),), 13, order=rb.data.Strata([0] * 3 + [1] * 10, {1: 8})
        )
