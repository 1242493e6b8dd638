"""What an audit finds, and what it leaves alone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch.utils.data import BatchSampler as TorchBatchSampler
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import rightbatch as rb
from rightbatch.cli.main import cli
from rightbatch.data.audit.mixing import mixing_of
from rightbatch.data.loading.batch_sampler import BatchSampler
from rightbatch.data.loading.shard_stream import ShardStream


def codes(audit: Any) -> dict[str, str]:
    return {finding.code: finding.severity for finding in audit.findings}


def ratio(loader: Any, **more: Any) -> float:
    return rb.audit(loader, **more).shuffle_noise.value


def test_mixing_is_measured_from_none_to_all() -> None:
    """Intervals of 8 waves times the batches; 1 and B within 15 %."""
    data = TensorDataset(torch.arange(40_000))
    assert ratio(DataLoader(data, batch_size=64)) == pytest.approx(64, rel=0.05)
    assert ratio(DataLoader(data, 64, shuffle=True)) == pytest.approx(1, abs=0.15)
    assert ratio(rb.BatchStream(data, 64)) == pytest.approx(1, abs=0.15)
    buffered = _Buffered(40_000, 1000)
    found = rb.audit(DataLoader(data, batch_size=64, sampler=buffered))
    assert 40 < found.shuffle_noise.value < 70
    assert "not mixed" in str(found)


class _Buffered:
    """The order of a shuffle buffer."""

    def __init__(self, length: int, buffer: int) -> None:
        self.length, self.buffer = length, buffer

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng(0)
        held = list(range(self.buffer))
        for number in range(self.buffer, self.length):
            place = int(generator.integers(self.buffer))
            yield held[place]
            held[place] = number
        yield from held


def test_labels_tell_whether_it_matters() -> None:
    data = TensorDataset(torch.arange(20_000))
    in_order = DataLoader(data, batch_size=50)
    sorted_labels = np.arange(20_000) // 2000
    mixed_labels = np.random.default_rng(0).permutation(sorted_labels)
    found = rb.audit(in_order, labels=sorted_labels).label_noise
    assert found is not None
    assert found.value == pytest.approx(50, rel=0.1)
    found = rb.audit(in_order, labels=mixed_labels).label_noise
    assert found is not None
    assert found.value == pytest.approx(1, abs=0.15)


def test_every_finding_is_told() -> None:
    data = TensorDataset(torch.arange(1000))
    labels = np.arange(1000) % 100 == 0
    ranks = DataLoader(data, 10, sampler=DistributedSampler(data, 3, 0))
    found = rb.audit(ranks)
    assert (found.lost, found.repeated) == (0, 2)
    assert "same order" in str(found)
    assert "repeats 2 of 1000" in str(found)
    assert codes(found) == {"RB203": "note", "RB204": "note"}
    dropping = rb.audit(DataLoader(data, 64, shuffle=True, drop_last=True))
    assert dropping.lost == 1000 - 960
    weights = np.where(labels, 99.0, 1.0)
    balanced = WeightedRandomSampler(weights.tolist(), 1000)
    found = rb.audit(DataLoader(data, 50, sampler=balanced), labels=labels)
    assert found.composition["True"] > 30
    assert "composed differently" in str(found)
    assert codes(found) == {"RB202": "warning", "RB203": "note"}
    lengths = np.where(labels, 500, 20)
    found = rb.audit(DataLoader(data, 50, shuffle=True), lengths=lengths)
    assert found.padding is not None
    assert found.padding > 0.5
    assert "padding" in str(found)
    assert codes(found) == {"RB206": "warning"}


def test_another_composition_is_no_lack_of_mixing() -> None:
    """Half of the data, or a rare class drawn often, from data in class order."""
    data = TensorDataset(torch.arange(20_000))
    half = DataLoader(data, 64, sampler=SubsetRandomSampler(range(10_000)))
    found = rb.audit(half)
    assert found.shuffle_noise.value == pytest.approx(1, abs=0.15)
    assert "leaves out 10000 of 20000 examples" in str(found)
    assert "they never come" in str(found)
    assert found  # a note: it may be meant
    weights = np.where(np.arange(20_000) >= 19_000, 19.0, 1.0)
    often = DataLoader(
        data, 64, sampler=WeightedRandomSampler(weights.tolist(), 20_000)
    )
    found = rb.audit(often, labels=weights)
    assert found.shuffle_noise.value == pytest.approx(1, abs=0.15)
    assert found.label_noise is not None
    assert found.label_noise.value == pytest.approx(1, abs=0.2)
    assert "not mixed" not in str(found)
    assert "with replacement, or by weight" in str(found)
    assert not found  # labels are off: another objective


def test_whoever_calls_set_epoch_passes() -> None:
    data = TensorDataset(torch.arange(1000))
    sampler = DistributedSampler(data, 2, 0)
    found = rb.audit(DataLoader(data, 10, sampler=sampler))
    assert "unless set_epoch is called" in str(found)
    assert found
    sampler.set_epoch(7)
    assert not rb.audit(DataLoader(data, 10, sampler=sampler)).findings
    assert sampler.epoch == 7

    hundred = TensorDataset(torch.arange(100))
    fixed = np.random.default_rng(0).permutation(100).tolist()
    found = rb.audit(DataLoader(hundred, 10, sampler=fixed))
    assert codes(found) == {"RB204": "warning"}
    assert not found


class Endless(Sampler[int]):
    """A sampler without an end; its generator is seeded when iteration begins."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng(0)
        while True:
            yield from rng.permutation(self.size).tolist()


class Sized(Endless):
    """Says how long the data is, as some do."""

    def __len__(self) -> int:
        return self.size


class Drawing(Endless):
    """Draws with replacement, batch by batch."""

    def __iter__(self) -> Iterator[Any]:
        rng = np.random.default_rng(0)
        while True:
            yield rng.integers(self.size, size=8).tolist()


@pytest.mark.parametrize("examples", [100, 900, 5000])
def test_a_sampler_without_an_end_is_begun_once(examples: int) -> None:
    data = TensorDataset(torch.arange(640))
    whole = DataLoader(data, 8, sampler=Endless(640))
    batches = DataLoader(data, batch_sampler=TorchBatchSampler(Endless(640), 8, False))
    drawing = DataLoader(data, batch_sampler=Drawing(640))
    for loader in (whole, batches, drawing):
        found = rb.audit(loader, examples=examples)
        assert not found.whole_epoch
        assert found
    assert rb.audit(DataLoader(data, 8, sampler=Sized(640)), examples=5000)


def test_a_generator_is_not_used_up() -> None:
    data = TensorDataset(torch.arange(640))
    in_turn = (i for _ in range(10**9) for i in range(640))
    with pytest.raises(rb.SettingError, match="cannot be copied"):
        rb.audit(DataLoader(data, 8, sampler=in_turn))  # pyrefly: ignore
    assert next(in_turn) == 0


class Own:
    """A sampler with random numbers of its own."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)

    def __len__(self) -> int:
        return 100

    def __iter__(self) -> Iterator[int]:
        yield from self.rng.permutation(100).tolist()


def test_an_audit_leaves_no_trace() -> None:
    data = TensorDataset(torch.arange(1000))
    sampler = Own()
    rb.audit(DataLoader(TensorDataset(torch.arange(100)), 10, sampler=sampler))
    assert list(sampler) == list(Own())
    generator = torch.Generator().manual_seed(0)
    inner = RandomSampler(range(1000), generator=generator)
    named = type(
        "Named", (), {"__iter__": lambda self: iter([[i] for i in self.inner])}
    )
    batches = named()
    batches.inner = inner
    state = generator.get_state()
    rb.audit(DataLoader(data, batch_sampler=batches))
    assert torch.equal(generator.get_state(), state)
    with pytest.raises(rb.SettingError, match="example 5000 of 1000"):
        rb.audit(DataLoader(data, batch_sampler=[[1, 2], [3, 5000]]))
    generator = torch.Generator().manual_seed(0)
    loader = DataLoader(data, 10, shuffle=True, generator=generator)
    before = generator.get_state(), torch.random.get_rng_state()
    stream = rb.BatchStream(data, 10)
    state = stream.state_dict()
    rb.audit(loader)
    rb.audit(stream)
    assert torch.equal(before[0], generator.get_state())
    assert torch.equal(before[1], torch.random.get_rng_state())
    assert stream.state_dict() == state


class Stream(IterableDataset[int]):
    """No indices."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(10))


def test_what_has_no_indices_is_refused_with_another_way() -> None:
    with pytest.raises(rb.SettingError, match="a Stream, which has no indices"):
        rb.audit(DataLoader(Stream()))
    with pytest.raises(rb.SettingError, match="needs a BatchStream, or a DataLoader"):
        rb.audit([1, 2])
    batches = np.random.default_rng(0).permutation(6400).reshape(100, 64)
    assert mixing_of(list(batches)).value == pytest.approx(1, abs=0.4)
    assert mixing_of(list(np.sort(batches.ravel()).reshape(100, 64))).value > 60
    with pytest.raises(rb.SettingError, match="same number"):
        mixing_of([np.ones(3)])
    with pytest.raises(rb.SettingError, match="no batches"):
        mixing_of([])
    with pytest.raises(rb.SettingError, match="mixing_of"):
        rb.audit(ShardStream(range(9), 3))


def test_good_loaders_are_not_complained_of() -> None:
    data = TensorDataset(torch.arange(1000))
    generator = torch.Generator().manual_seed(0)
    good: list[Any] = [
        DataLoader(data, 50, shuffle=True, generator=generator),
        DataLoader(data, batch_sampler=BatchSampler(1000, 50)),
        DataLoader(data, batch_size=None, sampler=BatchSampler(1000, 50)),
        rb.BatchStream(data, 48, tail="carry"),
        rb.BatchStream(data, 48, tail="drop"),
        rb.BatchStream(data, 48, order="replacement"),
        rb.BatchStream(data, 32, rank=0, world_size=3),
    ]
    half = rb.BatchStream(data, 50)
    next(iter(half))
    good.append(half)
    lengths = np.random.default_rng(0).integers(1, 100, 1000)
    for rank in (0, 1):
        order = rb.data.Tokens(lengths, 400, window=500)
        good.append(rb.BatchStream(data, 64, order=order, rank=rank, world_size=2))
    for loader in good:
        found = rb.audit(loader, lengths=lengths if loader in good[-2:] else None)
        assert found, str(found)
    assert torch.equal(
        generator.get_state(), torch.Generator().manual_seed(0).get_state()
    )
    ranks = rb.audit(
        DataLoader(data, batch_size=None, sampler=DistributedSampler(data, 3, 0))
    )
    assert (ranks.lost, ranks.repeated) == (0, 2)


def test_an_audit_of_a_huge_stream_takes_no_memory_of_its_length() -> None:
    class Huge:
        def __len__(self) -> int:
            return 4 * 10**9

        def __getitem__(self, index: int) -> int:
            return index

    assert rb.audit(rb.BatchStream(Huge(), 64), examples=10_000)
    with pytest.raises(rb.SettingError, match="one of the labels for each"):
        rb.audit(rb.BatchStream((torch.arange(40),), 8), labels=[0, 1])


def test_the_command_line_audits_a_loader(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(
        "import torch, rightbatch as rb\n"
        "from torch.utils.data import DataLoader, TensorDataset\n"
        "data = TensorDataset(torch.arange(2000))\n"
        "loader = DataLoader(data, batch_size=32)\n"
        "stream = rb.BatchStream(data, 32)\n"
    )

    for name, status in (("loader", 1), ("stream", 0)):
        found = CliRunner().invoke(
            cli, ["check", f"{tmp_path}/train.py:{name}"], standalone_mode=False
        )
        assert found.return_value == status, found.output
        assert "shuffle noise" in found.output
        assert ("not mixed" in found.output) == bool(status)
