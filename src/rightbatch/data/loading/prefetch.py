"""Reads the pieces that come next ahead, with the workers of torch's ``DataLoader``."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.util import Finalize
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from rightbatch.core.errors import JobError
from rightbatch.core.text import first_line
from rightbatch.core.torch_private import shut_down_workers, worker_processes
from rightbatch.data.loading.fetch import Fetch, Piece

Task = tuple[int, Piece]  # of which request
CLOSED = -1  # instead of a request: workers may be ended


class WorkerError(JobError, RuntimeError):
    """A process that reads the data has died."""


class Prefetch:
    """Hands out the batches of pieces in order, read ahead by a ``DataLoader``.

    What is read ahead rests on the batch size staying as it is. Where the next piece is
    not the one that comes out next, the loader begins anew with it: what workers have
    read for nothing is thrown away, never handed out.

    Args:
        fetch: Makes the batch of a piece.
        options: For the ``DataLoader``: ``num_workers``, ``pin_memory``, ….

    Attributes:
        refills: How often what was read ahead did not fit.
    """

    def __init__(self, fetch: Fetch, options: dict[str, Any]) -> None:
        self._num_workers = options["num_workers"]
        self._requests = 0
        self._request = torch.zeros(1, dtype=torch.int64)
        if self._num_workers:
            self._request.share_memory_()
            # Before multiprocessing ends those that are left, at the end of Python.
            Finalize(self, self._request.fill_, (CLOSED,), exitpriority=0)
            options = options | {
                "worker_init_fn": _BeginWorker(
                    options["worker_init_fn"], self._request
                ),
                "persistent_workers": True,
            }
        self._options = options
        self._work, self._tasks = _Work(fetch, self._request), _Tasks(self._request)
        self._loader: DataLoader[Any] | None = None
        self._batches: Any = None
        self.refills = 0

    def take(self, piece: Piece, pieces: Callable[[], Iterator[Piece]]) -> Any:
        """The batch of a piece.

        Args:
            piece: What is wanted now.
            pieces: Makes the pieces from this one on, as far as can be known.

        Raises:
            WorkerError: A worker has died.
            Exception: What the data set raised. In either case the workers are
                stopped; the next call starts new ones.
        """
        try:
            ahead = self._tasks.ahead
            if not (self._num_workers and ahead and ahead[0].same(piece)):
                self._begin(piece, pieces)
            if self._num_workers:
                ahead.popleft()
            return next(self._batches)
        except BaseException as error:
            workers = worker_processes(self._batches)
            with suppress(RuntimeError):  # torch's, of one more worker that died
                self.close()
            codes = [worker.exitcode for worker in workers]
            if any(codes) and isinstance(error, Exception):
                raise WorkerError(
                    "a process that reads the data has died",
                    seen=f"exit codes {codes}: {first_line(error)}",
                    why="negative is the signal that killed it, -9 often for memory; "
                    "the stream's state is intact, at the last whole step",
                    fix="fewer workers if memory was short; then read on: new ones "
                    "begin",
                ) from error
            raise

    def _begin(self, piece: Piece, pieces: Callable[[], Iterator[Piece]]) -> None:
        if self._num_workers and self._tasks.ahead:
            self.refills += 1
        # Workers leave what is left of earlier requests.
        self._requests += 1
        self._request.fill_(self._requests)
        self._tasks.pieces = pieces
        if self._loader is None:
            self._loader = DataLoader(
                self._work,  # pyrefly: ignore[bad-argument-type]
                batch_sampler=self._tasks,  # pyrefly: ignore[bad-argument-type]
                collate_fn=_as_it_is,
                # Its own, so that making workers draws nothing from the user's; and
                # another one at each place, for what workers draw if not seeded.
                generator=torch.Generator().manual_seed(int(piece.seeds[0] >> 1)),
                **self._options,
            )
        self._batches = iter(self._loader)

    def close(self) -> None:
        """Stop the workers; the next `take` starts new ones, and sees changed data."""
        batches, self._batches, self._loader = self._batches, None, None
        self._tasks.ahead.clear()
        self._request.fill_(CLOSED)
        # Now, not when a traceback that holds them is let go.
        shut_down_workers(batches)


class _Tasks:
    """The batch sampler of the loader: pieces instead of lists of indices.

    Attributes:
        pieces: Makes those that come next.
        ahead: Those that were asked for and not yet handed out.
    """

    def __init__(self, request: Tensor) -> None:
        self._request = request
        self.pieces: Callable[[], Iterator[Piece]] = lambda: iter(())
        self.ahead: deque[Piece] = deque()

    def __iter__(self) -> Iterator[Task]:
        self.ahead.clear()
        for piece in self.pieces():
            self.ahead.append(piece)
            yield int(self._request), piece


class _Work:
    """The data set of the loader, whose "examples" are whole batches."""

    def __init__(self, fetch: Fetch, request: Tensor) -> None:
        self.fetch, self._request = fetch, request

    def __getitems__(self, task: Task) -> Any:
        request, piece = task
        return self.fetch(piece) if request == int(self._request) else None


class _BeginWorker:
    """A worker's first act: there ``get_worker_info().dataset`` is the user's own.

    A Ctrl-C reaches workers too, and so does the SIGTERM of a scheduler; whether they
    end is the training process's to decide.
    """

    def __init__(self, then: Callable[[int], None] | None, request: Tensor) -> None:
        self._then, self._request = then, request

    def __call__(self, worker: int) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._end_if_closed)
        info: Any = get_worker_info()
        object.__setattr__(info, "dataset", info.dataset.fetch.data)
        if self._then is not None:
            self._then(worker)

    def _end_if_closed(self, number: int, frame: object) -> None:
        if int(self._request) == CLOSED:
            os._exit(0)


def _as_it_is(batch: Any) -> Any:
    """No collate: the batch is made already."""
    return batch


def start_method(chosen: Any) -> Any:
    """How workers begin: as chosen, but not forked beside a process group.

    Other threads use Python there, and a child forked at such a moment can be locked up
    before its first line (python/cpython#112275).
    """
    if chosen is not None or not (dist.is_available() and dist.is_initialized()):
        return chosen
    forks = multiprocessing.get_context().get_start_method() == "fork"
    return "forkserver" if forks else None
