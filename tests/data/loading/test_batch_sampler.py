"""The stream as a batch sampler of anybody's loader."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import reference
import rightbatch as rb
from rightbatch.data.loading.batch_sampler import BatchSampler


@pytest.mark.parametrize("workers", [0, 2])
def test_a_followed_sampler_stands_behind_what_came_out(workers: int) -> None:
    data = TensorDataset(torch.arange(100))
    sampler = BatchSampler(data, 7, seed=3)
    loader = DataLoader(data, batch_sampler=sampler, num_workers=workers)
    seen: list[int] = []
    for number, (x,) in enumerate(sampler.follow(loader)):
        seen += x.tolist()
        if number == 4:
            break
    assert sampler.position == 35
    fresh = BatchSampler(100, 10, seed=3)
    fresh.load_state_dict(sampler.state_dict())
    fresh.batch_size = 10
    for (x,) in fresh.follow(DataLoader(data, batch_sampler=fresh)):
        seen += x.tolist()
    assert seen == reference.epochs(100, 3, 1)
    assert (fresh.epoch, fresh.position) == (1, 0)
    assert len(DataLoader(data, batch_sampler=fresh)) == 10


def test_a_sampler_counts_examples() -> None:
    data = TensorDataset(torch.arange(10))
    for wrong, message in (
        (DataLoader(data, 2), "made for a data set"),
        (0, "is empty"),
        ([], "is empty"),
        (-5, "is empty"),
    ):
        with pytest.raises(rb.SettingError, match=message):
            BatchSampler(wrong, 4)
    named = type("Named", (list,), {"_fingerprint": "abc"})(range(10))
    assert BatchSampler(named, 4).fingerprint == "abc"
    rb.BatchStream(named, 4).load_state_dict(BatchSampler(named, 4).state_dict())
    sampler = BatchSampler(10, 4)
    with pytest.raises(rb.SettingError, match="in order"):
        next(sampler.follow(DataLoader(data, batch_sampler=sampler, in_order=False)))


def test_a_sampler_says_what_it_cannot_do() -> None:
    data = TensorDataset(torch.arange(10))
    sampler = BatchSampler(data, 4)
    with pytest.raises(rb.SettingError, match="does not use this sampler"):
        next(sampler.follow(DataLoader(data, batch_size=2)))
    with pytest.raises(rb.SettingError, match="needs importance weights"):
        next(iter(BatchSampler(data, 4, order=rb.data.Strata([0] * 5 + [1] * 5))))
    with pytest.raises(rb.SettingError, match="one batch per step"):
        next(iter(BatchSampler(data, 8, order=rb.data.Tokens([1] * 10, 4))))
    sampler.set_epoch(3)
    first = [i for b in sampler for i in b]
    assert first == reference.epochs(10, 0, 4)[30:]


def test_a_sampler_says_when_it_is_sent_elsewhere_in_a_loop() -> None:
    sampler = BatchSampler(40, 8)
    loader = DataLoader(TensorDataset(torch.arange(40)), batch_sampler=sampler)
    for loop in (iter(sampler), sampler.follow(loader)):
        next(loop)
        sampler.set_epoch(sampler.epoch + 1)
        with pytest.raises(rb.SettingError, match="somewhere else"):
            next(loop)
    first, second = sampler.follow(loader), sampler.follow(loader)
    next(first)
    next(second)
    del first
    next(second)


def test_a_sampler_with_too_few_examples_for_the_ranks_says_so() -> None:
    sampler = BatchSampler(10, 8, rank=3, world_size=4)
    with pytest.warns(UserWarning, match="different numbers"):
        assert len(list(sampler)) == 2
    found = rb.audit(DataLoader(TensorDataset(torch.arange(10)), batch_sampler=sampler))
    assert found.repeated == 2  # what the ranks without an example were given


def test_a_padded_tail_is_of_whole_batches() -> None:
    sampler = BatchSampler(10, 4, tail="pad", rank=1, world_size=2)
    assert [len(batch) for batch in sampler] == [2, 2, 2]
    assert [len(batch) for batch in BatchSampler(10, 4, tail="pad")] == [4, 4, 4]
