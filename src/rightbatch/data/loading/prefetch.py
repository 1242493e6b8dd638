"""Reads the pieces that come next ahead, with the workers of torch's ``DataLoader``."""

from __future__ import annotations

import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from rightbatch.core.torch_private import shut_down_workers, worker_processes
from rightbatch.data.loading.fetch import Fetch, Piece

Task = tuple[int, Piece]  # of which request


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
        self._request = torch.zeros(1, dtype=torch.int64)
        if self._num_workers:
            self._request.share_memory_()
            options = options | {
                "worker_init_fn": _BeginWorker(options["worker_init_fn"]),
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
            Exception: What the data set raised, or torch of a worker that died. Then
                the workers are stopped; the next call starts new ones.
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
            if workers:
                error.add_note(
                    "data workers ended with exit codes "
                    f"{[worker.exitcode for worker in workers]} (negative: killed by "
                    "that signal, -9 often for memory); the stream's state is intact, "
                    "at the last whole step: read on, and new workers begin"
                )
            raise

    def _begin(self, piece: Piece, pieces: Callable[[], Iterator[Piece]]) -> None:
        if self._num_workers and self._tasks.ahead:
            self.refills += 1
        self._request += 1  # workers leave what is left of earlier ones
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
        # Now, not when a traceback that holds them is let go.
        shut_down_workers(batches)

    def close_if_dead(self) -> None:
        """Begin anew where a worker died while the loop was busy elsewhere.

        torch has raised an error there, in the midst of the loop's own work.
        """
        workers = worker_processes(self._batches)
        if not all(worker.is_alive() for worker in workers):
            self.close()


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

    A Ctrl-C reaches workers too; whether they end is the training process's to decide.
    """

    def __init__(self, then: Callable[[int], None] | None) -> None:
        self._then = then

    def __call__(self, worker: int) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        info: Any = get_worker_info()
        object.__setattr__(info, "dataset", info.dataset.fetch.data)
        if self._then is not None:
            self._then(worker)


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
