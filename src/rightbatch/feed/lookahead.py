"""Keeps a DataLoader's workers busy with the pieces that will come next."""

from __future__ import annotations

import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing.connection import wait
from typing import Any

import torch
from torch.utils.data import DataLoader, get_worker_info

from rightbatch.errors import JobError
from rightbatch.feed.fetch import Fetch, Piece

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
        if options.get("num_workers"):
            self._current.share_memory_()
            options = options | {
                "worker_init_fn": _Begin(options.get("worker_init_fn")),
                "timeout": self._patience or CHECK_S,
            }
        self._fetch = Fetch(data, collate, seeded, self._current)
        self._options = options
        self._source: Iterator[Piece] = iter(())
        self._asked: deque[Piece] = deque()
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
        for _ in range(2):
            try:
                return self._take(piece, onward)
            except _Ended as ended:  # by a Ctrl-C, of which the loop has been told
                last = ended
        raise last.trouble from last.__cause__  # or by their data set, every time

    def _take(self, piece: Piece, onward: Callable[[], Iterator[Piece]]) -> Any:
        try:
            if self._asked and not self._asked[0].same(piece):
                self._refill(onward)
            elif not self._asked:
                self._source = onward()
            if self._loaded is None:
                self._source = onward()
                self._loaded = iter(self._loader())
            batch = self._next()
            got = self._asked.popleft()
        except BaseException as error:
            # What was asked for is forgotten, what was handed out is not.
            trouble = worker_trouble(error) if self._options["num_workers"] else None
            codes = _exit_codes(self._loaded) if trouble is not None else []
            self._stop(at_once=trouble is not None)
            if trouble is not None and 0 in codes and not any(codes):
                raise _Ended(trouble) from error
            if trouble is not None:
                raise trouble from error
            raise
        assert got.same(piece), "the loader handed out another piece"
        return batch

    def _next(self) -> Any:
        """Wait for the workers: as long as is asked for, or for ever, and say so."""
        waited = 0.0
        while True:
            try:
                return next(self._loaded)
            except RuntimeError as error:
                if self._patience or "DataLoader timed out" not in str(error):
                    raise
            waited += CHECK_S
            if waited - CHECK_S < LONG_S <= waited:
                workers = ", ".join(str(w.pid) for w in self._loaded._workers)
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

    def ask(self) -> tuple[int, Piece]:
        """The next piece for the workers, and its generation."""
        piece = next(self._source)
        self._asked.append(piece)
        return int(self._current[0]), piece

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
    """A worker's first act: there ``get_worker_info().dataset`` is the user's own."""

    def __init__(self, then: Callable[[int], None] | None) -> None:
        self.then = then

    def __call__(self, worker: int) -> None:
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
    """Workers have left with status 0: they do so when Ctrl-C reaches them."""

    def __init__(self, trouble: JobError) -> None:
        super().__init__()
        self.trouble = trouble


class _Tasks:
    """The batch sampler of the loader: pieces instead of lists of indices."""

    def __init__(self, owner: weakref.ref[Lookahead]) -> None:
        # Weak: workers stop when their stream is let go, not when a cycle is collected.
        self._owner = owner

    def __iter__(self) -> Iterator[tuple[int, Piece]]:
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
