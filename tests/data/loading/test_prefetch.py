"""Workers: they read ahead, die, are interrupted, and begin beside a process group."""

import gc
import os
import signal
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.utils.data import Dataset, TensorDataset, get_worker_info

import reference
import rightbatch as rb
from feeding import DEATHS, Numbers, Segment, run
from rightbatch.data.loading.prefetch import start_method


def workers_of(stream: rb.BatchStream) -> list[Any]:
    assert stream._prefetch is not None
    return list(stream._prefetch._batches._workers)


def test_with_micro_batches_a_change_wastes_nothing() -> None:
    """A new B is a new count: what workers have fetched ahead still serves."""
    sizes = [32] * 5 + [96] * 5 + [16] * 5 + [64] * 5
    _, _, refills = run(
        (torch.arange(100_000),), [Segment(1, 16, 2, 4, sizes, 0)], seed=2
    )
    assert refills == 0


def test_workers_keep_their_options_and_live_over_epochs() -> None:
    data = TensorDataset(torch.arange(40.0))
    stream = rb.BatchStream(
        data, 8, num_workers=2, worker_init_fn=_mark, prefetch_factor=3
    )
    assert sum(len(b[0]) for _ in range(3) for b in stream) == 120
    workers = workers_of(stream)
    assert len(workers) == 2
    assert all(w.is_alive() for w in workers)
    stream.close()
    for worker in workers:
        worker.join(5)
    assert not any(w.is_alive() for w in workers)


def _mark(worker: int) -> None:
    assert worker in (0, 1)


def test_a_stream_that_is_let_go_stops_its_workers_at_once() -> None:
    stream = rb.BatchStream((torch.arange(100),), 8, num_workers=2)
    next(iter(stream))
    workers = workers_of(stream)
    gc.disable()
    try:
        del stream  # no cycle that keeps it: else a later fork inherits dead workers
        for worker in workers:
            worker.join(5)
        assert not any(w.is_alive() for w in workers)
    finally:
        gc.enable()


@DEATHS
def test_a_worker_that_dies_leaves_the_state_intact() -> None:
    order = reference.epochs(60, 0, 1)
    data = Numbers(60, dies_at=order[33])
    stream = rb.BatchStream(data, 6, num_workers=2)
    seen: list[int] = []
    # Whatever torch meets first: the signal, the end, or a tensor's broken socket.
    with pytest.raises((RuntimeError, OSError, EOFError)):
        for index, _ in stream:
            seen += index.tolist()
    assert seen == order[: len(seen)]
    assert stream.position == len(seen) <= 33
    state = stream.state_dict()
    data.dies_at = -1
    resumed = rb.BatchStream(data, 6, num_workers=2)
    resumed.load_state_dict(state)
    for index, _ in resumed:
        seen += index.tolist()
    assert seen == order
    seen = seen[: stream.position]
    for index, _ in stream:  # the same stream goes on, with new workers
        seen += index.tolist()
    assert seen == order
    stream.close()
    resumed.close()


def test_a_ctrl_c_does_not_end_the_workers() -> None:
    """It reaches them too, while the training process may finish its step."""
    order = reference.epochs(60, 0, 1)
    stream = rb.BatchStream(Numbers(60, delay=0.005), 6, num_workers=2)
    batches = iter(stream)
    seen = next(batches)[0].tolist() + next(batches)[0].tolist()
    workers = workers_of(stream)
    for worker in workers:
        os.kill(worker.pid, signal.SIGINT)  # as the terminal does
    for index, _ in batches:
        seen += index.tolist()
    assert seen == order
    assert workers_of(stream) == workers
    stream.close()


class Quits(Numbers):
    """A library that ends the process."""

    def __getitem__(self, index: int) -> Any:
        if index == 5 and get_worker_info() is not None:
            os._exit(3)
        return super().__getitem__(index)


@DEATHS
def test_how_workers_ended_is_told() -> None:
    stream = rb.BatchStream(Quits(16), 4, order="sequential", num_workers=1)
    told = ""
    while not told:  # torch's first word, of the signal, may come anywhere
        try:
            list(stream)
        except rb.JobError as error:
            told = error.seen
        except RuntimeError:
            continue
    assert stream.position <= 4
    assert "exit codes [3]" in told


def test_a_sigterm_does_not_end_the_workers_until_the_stream_is_closed() -> None:
    """A scheduler sends it to the whole group; closing ends who does not listen."""
    data = Numbers(60, delay=0.005)
    stream = rb.BatchStream(data, 6, order="sequential", num_workers=1)
    batches = iter(stream)
    seen = next(batches)[0].tolist()
    (worker,) = workers_of(stream)
    os.kill(worker.pid, signal.SIGTERM)
    for index, _ in batches:
        seen += index.tolist()
    assert seen == list(range(60))
    assert workers_of(stream) == [worker]
    stream.close()
    worker.join(5)
    assert worker.exitcode == 0


class Tagged(Dataset[Any]):
    tag = 0

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[int, int]:
        info: Any = get_worker_info()
        assert info is None or info.dataset is self
        return index, self.tag


def tag(worker: int) -> None:
    info: Any = get_worker_info()
    assert worker == info.id
    info.dataset.tag = 5


def test_worker_init_sees_the_users_own_data_set() -> None:
    with rb.BatchStream(Tagged(), 4, num_workers=1, worker_init_fn=tag) as stream:
        assert {t for _, tags in stream for t in tags.tolist()} == {5}
    with rb.BatchStream(Tagged(), 4, num_workers=1) as stream:
        assert {t for _, tags in stream for t in tags.tolist()} == {0}


@pytest.mark.parametrize("moment", ["before", "behind"])
def test_an_interrupt_while_a_batch_is_taken_loses_nothing(moment: str) -> None:
    """A Ctrl-C just before or behind the loader's own ``next``."""
    stream = rb.BatchStream(Tagged(), 2, order="sequential", num_workers=1)
    batches = iter(stream)
    assert next(batches)[0].tolist() == [0, 1]
    prefetch: Any = stream._prefetch
    loaded, fired = prefetch._batches, []

    class Interrupted:
        _workers = loaded._workers
        _shutdown_workers = loaded._shutdown_workers

        def __next__(self) -> Any:
            fired.append(moment)
            if moment == "behind":
                next(loaded)
            raise KeyboardInterrupt

    prefetch._batches = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        next(batches)
    assert fired == [moment]
    assert [batch.tolist() for batch, _ in stream] == [[2, 3], [4, 5], [6, 7]]
    stream.close()


def test_workers_beside_a_process_group_are_not_forked(tmp_path: Any) -> None:
    assert start_method(None) is None
    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        assert start_method(None) == "forkserver"
        assert start_method("spawn") == "spawn"
        stream = rb.BatchStream(Numbers(8), 4, order="sequential", num_workers=1)
        assert [index.tolist() for index, _ in stream] == [[0, 1, 2, 3], [4, 5, 6, 7]]
        stream.close()
    finally:
        dist.destroy_process_group()
