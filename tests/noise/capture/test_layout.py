"""How examples lie in a tensor, and how they are cut into groups."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from rightbatch.noise.capture.layout import Groups, Layout, possible_axes


@given(st.integers(1, 50), st.integers(1, 50))
def test_groups_hold_every_example_once(batch: int, count: int) -> None:
    groups = Groups.of(batch, count)
    assert sum(groups.sizes) == batch
    assert max(groups.sizes) - min(groups.sizes) <= 1
    assert sorted(groups.strided_order(torch.device("cpu")).tolist()) == list(
        range(batch)
    )
    per_example = torch.randn(batch, 2)
    sums = torch.stack([per_example[a:b].sum(0) for a, b in groups.slices])
    torch.testing.assert_close(groups.sum(per_example), sums)


def test_layouts_put_examples_side_by_side() -> None:
    rows = torch.arange(6)[:, None].expand(6, 4).reshape(24, 1)
    assert (Layout(6, "first").split(rows)[2] == 2).all()
    turned = torch.arange(6)[None, :].expand(4, 6)
    assert (Layout(6, "second").split(turned)[2] == 2).all()
    assert (Layout(6, "interleaved").split(turned.reshape(24, 1))[2] == 2).all()
    assert possible_axes(torch.zeros(6, 6, 3), 6) == (
        "first",
        "second",
    )
    assert possible_axes(torch.zeros(5, 3), 4) == ()
