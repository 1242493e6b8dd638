"""Keeps a DataLoader's workers busy with the pieces that will come next."""

from __future__ import annotations

import multiprocessing
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing.connection import wait
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from rightbatch.errors import JobError
from rightbatch.feed.fetch import Fetch, Piece

TRIES = 3  # to start workers
BEGIN_S = 10.0  # a forked worker that has not begun by then never will [assumed]
CHECK_S = 5.0  # how often the wait for workers is looked at, as torch does
LONG_S = 60.0  # a wait that is worth a word [assumed]
LAST_WORDS_S = 1.0  # a worker whose socket is gone is a process this much longer


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
                "worker_init_fn": _Begin(self._begun, then),
                "timeout": self._patience or CHECK_S,
            }
        self._fetch = Fetch(data, collate, seeded, self._current)
        self._options = options
        self._source: Iterator[Piece] = iter(())
        self._asked: deque[tuple[int, Piece]] = deque()
        self._number = 0
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
        last: _Ended | None = None
        for _ in range(TRIES):
            try:
                return self._take(piece, onward)
            except _Ended as ended:  # by a Ctrl-C, of which the loop has been told
                last = ended
        assert last is not None
        raise last.trouble from last.__cause__  # or by their data set, every time

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
            codes = _exit_codes(self._loaded) if trouble is not None else []
            self._stop(at_once=trouble is not None or isinstance(error, _Ended))
            if trouble is not None and 0 in codes and not any(codes):
                raise _Ended(trouble) from error
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
            if waited >= BEGIN_S and not bool(self._begun.all()) and self._forks():
                raise self._stillborn()
            if waited - CHECK_S < LONG_S <= waited:
                workers = ", ".join(str(w.pid) for w in self._loaded._workers)
                warnings.warn(
                    f"no batch has come from the data workers for {waited:.0f} s; "
                    f"still waiting (processes {workers}; timeout= makes it an error)",
                    stacklevel=6,
                )

    def _forks(self) -> bool:
        chosen = self._options.get("multiprocessing_context")
        if chosen is None or isinstance(chosen, str):
            return (chosen or multiprocessing.get_start_method()) == "fork"
        return bool(chosen.get_start_method() == "fork")

    def _stillborn(self) -> _Ended:
        """What to raise where a forked worker never came to its first line.

        Python before 3.11.10 can lock up a child that is forked while another thread,
        such as one of gloo's, enters or leaves Python (python/cpython#112275). A new
        one most likely lives.
        """
        count = int((~self._begun).sum())
        warnings.warn(
            f"{count} of {len(self._begun)} data workers did not begin within "
            f"{BEGIN_S:.0f} s after they were forked, as happens where other threads "
            "use Python (python/cpython#112275); all are started anew, and nothing is "
            "lost",
            stacklevel=7,
        )
        return _Ended(
            JobError(
                "data workers do not begin",
                seen=f"{count} of {len(self._begun)}, {TRIES} times",
                why="the stream's state is intact, at the last whole step",
                fix="multiprocessing_context='forkserver', or Python 3.11.10 or newer",
            )
        )

    def _bury(self) -> None:
        """Start anew where a worker has died while the loop was busy elsewhere.

        torch has raised an error there, in the midst of the loop's own work: it is no
        second one that what was read ahead is read again.
        """
        workers = getattr(self._loaded, "_workers", [])
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
        workers = list(getattr(loaded, "_workers", [])) if at_once else []
        steps = [worker.kill for worker in workers]  # a dead one may hold their lock
        steps.append(getattr(loaded, "_shutdown_workers", lambda: None))
        for step in steps:
            _whoever_dies(step, len(workers))

    def _refill(self, onward: Callable[[], Iterator[Piece]]) -> None:
        self.refills += 1
        self._current += 1
        self._source, stale = onward(), len(self._asked)
        try:
            for _ in range(stale):  # each one makes room for a piece of the new source
                next(self._loaded)
                self._asked.popleft()
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


class _Begin:
    """A worker's first act: there ``get_worker_info().dataset`` is the user's own.

    Args:
        begun: Shared; which workers have come so far.
        then: The user's own first act.
    """

    def __init__(self, begun: Tensor, then: Callable[[int], None] | None) -> None:
        self.begun, self.then = begun, then

    def __call__(self, worker: int) -> None:
        self.begun[worker] = True
        info: Any = get_worker_info()
        object.__setattr__(info, "dataset", info.dataset.data)
        if self.then is not None:
            self.then(worker)


def _exit_codes(loaded: Any) -> list[int | None]:
    """Of the workers, once one of them has ended."""
    workers = getattr(loaded, "_workers", [])
    ends = [worker.sentinel for worker in workers]
    _whoever_dies(lambda: wait(ends, timeout=LAST_WORDS_S), len(workers))
    return [worker.exitcode for worker in workers]


def _whoever_dies(act: Callable[[], object], workers: int) -> None:
    """Act; of each death torch tells by an error wherever we are, then once more."""
    for _ in range(1 + workers):
        try:
            act()
            return
        except RuntimeError:
            continue


class _Ended(Exception):
    """Workers have left with status 0, as where Ctrl-C reaches them, or never begun."""

    def __init__(self, trouble: JobError) -> None:
        super().__init__()
        self.trouble = trouble


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


def worker_trouble(error: BaseException) -> JobError | None:
    """What to tell where a worker died or stands still; None for what data raised."""
    text = str(error)
    if text.startswith("Caught"):  # raised in a worker, which lives
        return None
    seen = text.splitlines()[0] if text else repr(error)
    intact = "the examples it was reading were not handed out; the stream's state is "
    intact += "intact, at the last whole step"
    if isinstance(error, RuntimeError) and "DataLoader timed out" in text:
        return JobError(
            "a data worker did not answer in time",
            seen=seen,
            why=intact,
            fix="a larger timeout, or find what its data set waits for",
        )
    # No such file: the socket by which a worker that has ended was to send a tensor.
    died = isinstance(error, (EOFError, ConnectionError, FileNotFoundError)) or (
        isinstance(error, RuntimeError)
        and "DataLoader worker" in text
        and ("exited unexpectedly" in text or "killed by signal" in text)
    )
    if not died:
        return None
    return JobError(
        "a data worker died",
        seen=seen,
        why=intact,
        fix="go on, and new workers are started; if it was killed for memory: fewer "
        "num_workers or a smaller prefetch_factor; if none ever came: with spawn, "
        "workers must be able to import the data set's class",
    )
