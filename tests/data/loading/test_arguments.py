"""What a stream is given, and what it says of what makes no sense."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset, random_split

import rightbatch as rb
from rightbatch.data.loading.arguments import fingerprint_of, subset_of

DATA = (torch.arange(40),)


class Eight(Dataset[int]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Any:
        return index


class Ragged(Eight):
    def __getitem__(self, index: int) -> Any:
        return torch.zeros(index + 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dataset": ()}, "common first axis"),
        ({"dataset": (torch.arange(0),)}, "empty"),
        ({"dataset": []}, "empty"),
        ({"dataset": iter([1])}, "cannot be read by number"),
        ({"batch_size": 0}, "at least 1"),
        ({"batch_size": 2.0}, "integer"),
        ({"batch_size": 21, "tail": "drop"}, "drop every batch"),
        ({"shuffle": True}, 'order="shuffled"'),
        ({"drop_last": True}, 'tail="drop"'),
        ({"persistent_workers": True}, "workers persist"),
        ({"tail": "cut"}, "keep, drop, carry, pad"),
        ({"tail": "drop", "order": "replacement"}, "no effect"),
        ({"order": "random"}, "shuffled, sequential"),
        ({"rank": 2, "world_size": 2}, "not below world_size"),
        ({"micro_batch": 0}, "at least 1"),
        ({"seed": -1}, "at least 0"),
        ({"order": rb.data.Strata([0, 1])}, "another data set"),
        ({"order": "poisson", "batch_size": 21}, "more than the 20"),
        ({"world_size": 2}, "belong together"),
        ({"rank": 1}, "belong together"),
        ({"collate_fn": list}, "no effect on a tuple"),
        ({"ledger": "x", "order": "poisson"}, "nothing to prove"),
        ({"seed_fn": print, "seeded": False}, "seed_fn has no effect"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    arguments: dict[str, Any], message: str
) -> None:
    settings: dict[str, Any] = {"dataset": (torch.arange(20),), "batch_size": 5}
    with pytest.raises(rb.SettingError, match=message):
        rb.BatchStream(**settings | arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"worker_init_fn": print}, "worker_init_fn has no effect"),
        ({"timeout": 3}, "timeout has no effect"),
        ({"multiprocessing_context": "spawn"}, "multiprocessing_context has no effect"),
        ({"prefetch_factor": 2}, "prefetch_factor has no effect"),
    ],
)
def test_settings_without_effect_are_said(
    arguments: dict[str, Any], message: str
) -> None:
    settings: dict[str, Any] = {"dataset": (torch.arange(20),), "batch_size": 5}
    with pytest.warns(UserWarning, match=message):
        rb.BatchStream(**settings | arguments)


def test_a_stream_made_before_the_process_group_says_so(monkeypatch: Any) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.warns(UserWarning, match="not initialised"):
        rb.BatchStream(DATA, 8)


def test_messages_name_what_helps() -> None:
    parts = {"train": Eight(), "test": [1, 2]}
    with pytest.raises(rb.SettingError, match=r"data\['train'\]"):
        rb.BatchStream(parts, 2)
    with pytest.raises(rb.SettingError, match="StackDataset"):
        rb.BatchStream({"x": [1, 2], "y": [3, 4]}, 2)
    with pytest.raises(RuntimeError) as caught:
        list(rb.BatchStream(Ragged(), 4))
    assert "collate_fn" in caught.value.__notes__[-1]


def test_a_hugging_face_transform_is_no_other_data_set() -> None:
    """Its fingerprint may hold a generator's state, and is another in each process."""

    def table(fingerprint: str, kind: str | None) -> Any:
        table: Any = Eight()
        table._fingerprint, table.format = fingerprint, {"type": kind}
        return table

    assert (
        fingerprint_of(table("a", None)) == fingerprint_of(table("a", "torch")) == "a"
    )
    assert fingerprint_of(table("a", "custom")) == fingerprint_of(table("b", "custom"))


def test_nothing_but_the_batch_size_is_assigned() -> None:
    stream = rb.BatchStream(DATA, 3)
    stream.batch_size = 4
    for name in ("micro_batch", "num_workers", "tail", "epoch", "seed", "dataset"):
        with pytest.raises(AttributeError, match=name):
            setattr(stream, name, 2)


def test_another_random_split_is_another_data_set() -> None:
    data = TensorDataset(torch.arange(100))
    seeds = [torch.Generator().manual_seed(seed) for seed in (1, 1, 2)]
    parts = [random_split(data, [80, 20], seed) for seed in seeds]
    state = rb.BatchStream(parts[0][0], 8).state_dict()
    rb.BatchStream(parts[1][0], 8).load_state_dict(state)
    with pytest.raises(rb.SettingError, match="another data set"):
        rb.BatchStream(parts[2][0], 8).load_state_dict(state)
    both = ConcatDataset([parts[0][1], parts[0][0]])
    state = rb.BatchStream(both, 8).state_dict()
    with pytest.raises(rb.SettingError, match="another data set"):
        rb.BatchStream(ConcatDataset(parts[2]), 8).load_state_dict(state)


class Keyed:
    """Read by other things than numbers, through a subset."""

    def __getitem__(self, key: Any) -> int:
        return len(key)


def test_subsets_of_any_indices_are_taken() -> None:
    odd: Any = Keyed()
    for indices in (["a", "bcd"], [(0, 1), (2,)], [(0, 1), (2, 3)]):
        keys: Any = indices
        (batch,) = rb.BatchStream(Subset(odd, keys), 2)
        assert sorted(batch.tolist()) == sorted(map(len, keys))
    data = TensorDataset(torch.arange(10**6))
    some: list[Any] = [range(10**6), range(0, 10**6, 2), [1, 2, 3], [1, 3, 2]]
    some.append(np.array([3, 1, 2]))
    found = {fingerprint_of(Subset(data, indices)) for indices in some}
    assert len(found) == 5
    same: Any = torch.tensor([3, 1, 2])
    assert fingerprint_of(Subset(data, same)) in found
    inner = Subset(Subset(data, [5, 6, 7]), [0, 2])
    assert subset_of(fingerprint_of(inner)).count("[") == 2
