"""Every example of a step goes to one rank, and every rank has as many passes."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rightbatch.data.loading.split_ranks import split_across_ranks


@settings(deadline=None)
@given(
    st.integers(1, 300),
    st.integers(1, 8),
    st.one_of(st.none(), st.integers(1, 40)),
    st.sampled_from([1, 2, 3]),
)
def test_everything_is_split_once_and_every_rank_has_as_many(
    count: int, world: int, micro: int | None, unit: int
) -> None:
    count *= unit
    ranks = split_across_ranks(count, world, micro, unit=unit)
    parts = [p for of_rank in ranks for p in of_rank if not p.filler]
    places = sorted(i for p in parts for i in range(p.start, p.stop))
    assert places == list(range(count))
    assert len({len(of_rank) for of_rank in ranks}) == 1
    assert all(p.start % unit == p.stop % unit == 0 for p in parts)
    if micro is not None:
        assert all(p.stop - p.start <= max(micro, unit) for p in parts)
    sizes = [sum(p.size for p in of_rank) for of_rank in ranks]
    assert max(sizes) - min(sizes) <= unit
    row = max(1, (micro or count) // unit) * world if micro else count
    rest = (count // unit) % row if micro else count // unit
    assert any(p.filler for of_rank in ranks for p in of_rank) == (0 < rest < world)


@settings(deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=12), st.integers(1, 5))
def test_runs_keep_their_fences(runs: list[int], world: int) -> None:
    edges = np.cumsum(runs).tolist()
    fences = tuple(edges[:-1]) or (edges[-1],)
    ranks = split_across_ranks(edges[-1], world, None, fences=fences)
    parts = [p for of_rank in ranks for p in of_rank if not p.filler]
    places = sorted(i for p in parts for i in range(p.start, p.stop))
    assert places == list(range(edges[-1]))
    assert len({len(of_rank) for of_rank in ranks}) == 1
    for part in parts:
        assert not any(part.start < e < part.stop for e in edges)
