"""P classes of K examples: equally often, different, and whole."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import rightbatch as rb


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(1, 12), min_size=2, max_size=15),
    st.integers(2, 4),
    st.lists(st.integers(1, 6), min_size=1, max_size=30),
    st.integers(0, 3),
)
@pytest.mark.filterwarnings("ignore:.*classes have fewer")
def test_pairs_are_p_classes_of_k_examples_each_class_once_a_lap(
    sizes: list[int], each: int, wanted: list[int], seed: int
) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    classes = [c for c, n in enumerate(sizes) if n >= each]
    if not classes:
        with pytest.raises(rb.SettingError, match="no class has"):
            rb.data.Pairs(labels, each=each)
        return
    data = (torch.arange(len(labels)),)
    wanted = [min(w, len(classes)) for w in wanted]
    stream = rb.BatchStream(
        data, each * wanted[0], order=rb.data.Pairs(labels, each=each), seed=seed
    )
    visits: list[int] = []
    seen: dict[int, list[int]] = {c: [] for c in classes}
    for number in wanted:
        stream.batch_size = each * number
        if len(visits) % 2:  # a state goes on in the same way
            state = stream.state_dict()
            stream = rb.BatchStream(
                data, each, order=rb.data.Pairs(labels, each=each), seed=seed
            )
            stream.load_state_dict(state)
            stream.batch_size = each * number
        (micro,) = next(stream.steps())
        index = micro.indices.numpy()
        assert len(set(index.tolist())) == each * number  # no duplicates
        groups = labels[index].reshape(number, each)
        assert (groups == groups[:, :1]).all()
        assert len(set(groups[:, 0].tolist())) == number
        assert (micro.groups.numpy() == labels[index]).all()
        visits += groups[:, 0].tolist()
        for i in index.tolist():
            seen[int(labels[i])].append(i)
    counts = np.bincount(visits, minlength=len(sizes))[classes]
    assert counts.max() - counts.min() <= 1
    for c in classes:  # all of a class before any comes again but to fill up K
        turn = -(-sizes[c] // each) * each
        for first in range(0, len(seen[c]) - turn + 1, turn):
            assert len(set(seen[c][first : first + turn])) == sizes[c]


def test_pairs_stay_whole_on_ranks_and_in_micro_batches() -> None:
    labels = np.repeat(np.arange(40), 5)
    taken = []
    for rank in range(3):
        stream = rb.BatchStream(
            (torch.from_numpy(labels),),
            40,
            order=rb.data.Pairs(labels, each=4),
            rank=rank,
            world_size=3,
            micro_batch=8,
        )
        for micro in next(stream.steps()):
            found = micro.data[0].reshape(-1, 4)
            assert (found == found[:, :1]).all()
            if micro.share:
                taken += micro.indices.tolist()
    assert len(taken) == len(set(taken)) == 40


def test_small_classes_are_said_or_repeated() -> None:
    labels = [0, 0, 0, 1, 2, 2]
    with pytest.warns(UserWarning, match="1 of 3 classes have fewer than 2"):
        pairs = rb.data.Pairs(labels, each=2)
    assert pairs.classes == 2
    stream = rb.BatchStream(
        (torch.tensor(labels),), 6, order=rb.data.Pairs(labels, small="repeat")
    )
    assert sorted(next(iter(stream))[0].tolist()) == [0, 0, 1, 1, 2, 2]


def test_two_copies_of_an_example_are_augmented_differently() -> None:
    class Augmented:
        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> torch.Tensor:
            return torch.rand(())

    order = rb.data.Pairs([0], small="repeat")
    first, second = next(iter(rb.BatchStream(Augmented(), 2, order=order))).tolist()
    assert first != second
