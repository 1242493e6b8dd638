"""Keeps a DataLoader's workers busy with the pieces that will come next."""

from __future__ import annotations

import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from rightbatch.core.torch_private import shut_down_workers, worker_processes
from rightbatch.data.loading.fetch import Fetch, Piece
from rightbatch.data.loading.workers import (
    BEGIN_S,
    CHECK_S,
    LONG_S,
    TRIES,
    Begin,
    Ended,
    exit_codes,
    forks,
    stillborn,
    whoever_dies,
    worker_trouble,
)


class Lookahead:
    """Hands out pieces in order, fetched ahead by an ordinary ``DataLoader``.

    What is fetched ahead is a guess: that the batch size stays. A piece that turns out
    otherwise is never handed out. It and all behind it are passed over (a worker that
    has not begun on one leaves it), and the right ones are asked for. So the answer is
    always exact, and a wrong guess costs one refill of the workers' queues.

    Args:
        data: Map-style data set, or a tuple of tensors.
        collate: Makes a batch of a list of examples.
        seeded: Whether every example gets its own randomness.
        options: For the ``DataLoader``: ``num_workers``, ``pin_memory``, ….
    """

    def __init__(
        self, data: Any, collate: Any, *, seeded: bool, options: dict[str, Any]
    ) -> None:
        self._current = torch.zeros(1, dtype=torch.int64)
        self._patience = options.get("timeout", 0)
        self._begun = torch.zeros(options.get("num_workers", 0), dtype=torch.bool)
        if options.get("num_workers"):
            self._current.share_memory_()
            self._begun.share_memory_()
            then = options.get("worker_init_fn")
            options = options | {
                "worker_init_fn": Begin(self._begun, then),
                "timeout": self._patience or CHECK_S,
            }
        self._fetch = Fetch(data, collate, seeded, self._current)
        self._options = options
        self._source: Iterator[Piece] = iter(())
        self._asked: deque[tuple[int, Piece]] = deque()
        self._number, self._begin_s = 0, BEGIN_S
        self._loaded: Any = None
        self.refills = 0  # guesses that were wrong

    def take(self, piece: Piece, onward: Callable[[], Iterator[Piece]]) -> Any:
        """The collated examples of ``piece``.

        Args:
            piece: What is wanted now.
            onward: Makes the pieces from this one on, as far as can be guessed.

        Raises:
            JobError: A worker died; nothing was handed out.
        """
        self._bury()
        last: Ended | None = None
        for attempt in range(TRIES):
            self._begin_s = BEGIN_S * 2**attempt  # it may be the machine
            try:
                return self._take(piece, onward)
            except Ended as ended:
                last = ended
                if ended.warning and attempt + 1 < TRIES:
                    warnings.warn(ended.warning, stacklevel=5)
        assert last is not None
        raise last.trouble from last.__cause__  # every time

    def _take(self, piece: Piece, onward: Callable[[], Iterator[Piece]]) -> Any:
        try:
            if self._asked and not self._asked[0][1].same(piece):
                self._refill(onward)
            elif not self._asked:
                self._source = onward()
            if self._loaded is None:
                self._asked.clear()  # by a loader that is no more
                self._begun.zero_()
                self._source = onward()
                self._loaded = iter(self._loader())
            found, batch = self._next()
            number, got = self._asked.popleft()
        except BaseException as error:
            # What was asked for is forgotten, what was handed out is not.
            trouble = worker_trouble(error) if self._options["num_workers"] else None
            codes = exit_codes(self._loaded) if trouble is not None else []
            self._stop(at_once=trouble is not None or isinstance(error, Ended))
            if trouble is not None and 0 in codes and not any(codes):
                raise Ended(trouble) from error
            if trouble is not None:
                raise trouble from error
            raise
        assert found == number, "the loader handed out another batch"
        assert got.same(piece), "the loader handed out another piece"
        return batch

    def _next(self) -> Any:
        """Wait for the workers: as long as is asked for, or for ever, and say so."""
        waited = 0.0
        while True:
            try:
                return next(self._loaded)
            except RuntimeError as error:
                # torch's own line, of our own limit; what data raise begins otherwise.
                if str(error) != f"DataLoader timed out after {CHECK_S} seconds":
                    raise
                pins = getattr(self._loaded, "_pin_memory_thread", None)
                pinned = pins is None or pins.is_alive()
                if self._patience or not len(self._begun) or not pinned:
                    raise
            waited += CHECK_S
            missing = len(self._begun) - int(self._begun.sum())
            if missing and waited >= self._begin_s and forks(self._options):
                raise stillborn(missing, len(self._begun), waited)
            if waited - CHECK_S < LONG_S <= waited:
                workers = ", ".join(str(w.pid) for w in worker_processes(self._loaded))
                warnings.warn(
                    f"no batch has come from the data workers for {waited:.0f} s; "
                    f"still waiting (processes {workers}; timeout= makes it an error)",
                    stacklevel=6,
                )

    def _bury(self) -> None:
        """Start anew where a worker has died while the loop was busy elsewhere.

        torch has raised an error there, in the midst of the loop's own work: it is no
        second one that what was read ahead is read again.
        """
        workers = worker_processes(self._loaded)
        dead = [worker for worker in workers if not worker.is_alive()]
        if any(worker.exitcode for worker in dead):  # 0: by a Ctrl-C, in peace
            warnings.warn(
                "a data worker died while the training step was running; new ones are "
                "started, and what it was reading is read again",
                stacklevel=5,
            )
        if dead:
            self._stop(at_once=True)

    def ask(self) -> tuple[int, int, Piece]:
        """A task for the workers: its number, its generation, and the next piece."""
        piece = next(self._source)
        self._number += 1
        self._asked.append((self._number, piece))
        return self._number, int(self._current[0]), piece

    def close(self) -> None:
        """Stop the workers; the next `take` starts new ones, and sees changed data."""
        self._fetch.renew()
        self._stop(at_once=False)

    def _stop(self, *, at_once: bool) -> None:
        # Now, not whenever a traceback that still holds the iterator is collected: by
        # then its queues are gone, and every worker takes 5 s to notice.
        loaded, self._loaded = self._loaded, None
        self._asked.clear()
        workers = worker_processes(loaded) if at_once else []
        steps = [worker.kill for worker in workers]  # a dead one may hold their lock
        steps.append(lambda: shut_down_workers(loaded))
        for step in steps:
            whoever_dies(step, len(workers))

    def _refill(self, onward: Callable[[], Iterator[Piece]]) -> None:
        self.refills += 1
        self._current += 1
        self._source, stale = onward(), len(self._asked)
        try:
            for _ in range(stale):  # each one makes room for a piece of the new source
                self._next()
                self._asked.popleft()
        except Ended:
            raise
        except Exception:
            # A piece that nobody wants could not be read, or a worker has died: if it
            # matters it will happen again.
            self.close()
            self._source = onward()

    def _loader(self) -> Any:
        return DataLoader(
            self._fetch,  # pyrefly: ignore[bad-argument-type]
            batch_sampler=_Tasks(weakref.ref(self)),  # pyrefly: ignore[bad-argument-type]
            collate_fn=Fetch.as_it_is,
            # Its own, so that making workers draws nothing from the user's.
            generator=torch.Generator().manual_seed(self._worker_seed()),
            **self._options,
        )

    def _worker_seed(self) -> int:
        piece = next(self._source)
        source = self._source

        def again() -> Iterator[Piece]:
            yield piece
            yield from source

        self._source = again()
        # Workers' own random numbers differ from place to place, also after a resume.
        return int(piece.seeds[0] >> 1)


class _Tasks:
    """The batch sampler of the loader: pieces instead of lists of indices."""

    def __init__(self, owner: weakref.ref[Lookahead]) -> None:
        # Weak: workers stop when their stream is let go, not when a cycle is collected.
        self._owner = owner

    def __iter__(self) -> Iterator[tuple[int, int, Piece]]:
        while (lookahead := self._owner()) is not None:
            task = lookahead.ask()
            del lookahead
            yield task
