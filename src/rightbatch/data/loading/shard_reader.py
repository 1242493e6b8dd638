"""The examples of a source that can only be iterated, from wherever one stood."""

from __future__ import annotations

import copy
import hashlib
import itertools
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from rightbatch.core.errors import SettingError
from rightbatch.core.torch_private import shut_down_workers
from rightbatch.data.loading.workers import worker_trouble

PIECE = 64  # examples that a worker sends at once [assumed]
SAMPLED = 1 << 16  # numbers of an array that tell it from others, at most [assumed]


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """Where a reader stands.

    Attributes:
        epoch: From 0.
        position: Examples of it that lie behind.
        before: The source's state at the last place where it was asked; None: at the
            epoch's start.
        used: Examples since.
        known: Digest of the example before this place; "" where nobody asked yet.
    """

    epoch: int = 0
    position: int = 0
    before: Any = None
    used: int = 0
    known: str = ""


class _Pieces(IterableDataset[Any]):
    """The source in pieces, each with the source's last state; endless epochs."""

    def __init__(
        self, source: Any, place: Place, skip: int, state_every: int, piece: int
    ) -> None:
        self.source, self.place, self.skip = source, place, skip
        self.state_every, self.piece = state_every, piece

    def __iter__(self) -> Iterator[tuple[Any, int, list[Any], bool]]:
        epoch, skip, before = self.place.epoch, self.skip, self.place.before
        while True:
            if hasattr(self.source, "set_epoch"):
                self.source.set_epoch(epoch)
            if before is not None:
                self.source.load_state_dict(copy.deepcopy(before))
            examples, since = itertools.islice(iter(self.source), skip, None), 0
            while True:
                piece: list[Any] = []
                broken = None
                try:
                    for example in itertools.islice(examples, self.piece):
                        piece.append(example)
                except Exception as error:
                    broken = error  # what was read before it is handed out first
                if piece:
                    yield before, since, piece, False
                    since += len(piece)
                if broken is not None:
                    raise broken
                if not piece:
                    break
                if self.state_every and since >= self.state_every:
                    before, since = copy.deepcopy(self.source.state_dict()), 0
            yield before, since, [], True
            epoch, skip, before = epoch + 1, 0, None


class Reader:
    """Hands out one example after another, and says where it stands.

    Args:
        source: Anything to iterate over.
        state_every: Examples between two states of its own ``state_dict``, at least: a
            resume reads them again. 0: it has none, or is not asked.
        workers: 0, or 1 to read ahead in a process of its own.
    """

    def __init__(self, source: Any, state_every: int, workers: int) -> None:
        self.source, self.state_every, self.workers = source, state_every, workers
        self.place = Place()
        self.changed = False  # whether the source came in another order than before
        self._ahead: deque[tuple[Any, int, Any]] = deque()
        self._over = False  # whether the epoch ends behind what is ahead
        self._pieces: Iterator[Any] | None = None
        self._again: list[int] = []  # examples to be passed over, at the start

    def go(self, place: Place) -> None:
        """Stand there, and read on from there when next asked."""
        self.close()
        self.place = place

    def close(self) -> None:
        """Stop reading ahead; what was read and not handed out is read again."""
        pieces, self._pieces, self._over = self._pieces, None, False
        self._ahead.clear()
        shut_down_workers(pieces)

    def available(self) -> bool:
        """Whether the epoch has another example; reads on if need be.

        Raises:
            JobError: The worker died.
            SettingError: The source ends before where the place was.
        """
        while not self._ahead and not self._over:
            if self._pieces is None:
                self._pieces, again = self._begin()
                self._pass_over(again)
                continue
            self._read()
        return bool(self._ahead)

    def take(self) -> Any:
        """The next example of the epoch, which `available` has found."""
        before, used, example = self._ahead.popleft()
        place = self.place
        self.place = Place(place.epoch, place.position + 1, before, used + 1)
        return example

    def mark(self, example: Any) -> None:
        """Remember the example before this place, as a collate has not seen it yet."""
        if self.place.position:
            self.place = replace(self.place, known=digest_of(example))

    def turn(self) -> None:
        """The next epoch begins."""
        self.place, self._over = Place(self.place.epoch + 1), False

    def _begin(self) -> tuple[Iterator[Any], int]:
        """A new reader, and how many of its first examples lie behind."""
        again = self.place.used
        skip = 0
        if not self.state_every:  # all but one are passed over where they are read
            again = min(self.place.position, 1)
            skip = self.place.position - again
        # Alone, one at a time: none is waited for before it is needed.
        piece = PIECE if self.workers else 1
        pieces = _Pieces(self.source, self.place, skip, self.state_every, piece)
        if not self.workers:
            return iter(pieces), again
        loader = DataLoader(
            pieces,
            batch_size=None,
            num_workers=1,
            collate_fn=as_it_is,
            generator=torch.Generator().manual_seed(0),
        )
        return iter(loader), again

    def _pass_over(self, again: int) -> None:
        """Read what lies behind, and see whether it is what it was."""
        last = None
        for _ in range(again):
            while not self._ahead and not self._over:
                self._read()
            if not self._ahead:
                self.close()
                raise SettingError(
                    "the source ends before the place where the state was saved",
                    seen=f"place {self.place.position} of epoch {self.place.epoch}",
                    fix="the source that the state was saved with",
                )
            _, _, last = self._ahead.popleft()
        if again and self.place.known and digest_of(last) != self.place.known:
            self.changed = True

    def _read(self) -> None:
        """One more piece."""
        assert self._pieces is not None
        try:
            before, since, examples, self._over = next(self._pieces)
        except BaseException as error:
            trouble = worker_trouble(error) if self.workers else None
            self.close()  # the source or its worker broke off: begin anew
            if trouble is not None:
                raise trouble from error
            raise
        self._ahead.extend((before, since + n, e) for n, e in enumerate(examples))


def digest_of(example: Any) -> str:
    """Tells an example from another by its numbers and texts; "" where it cannot."""
    digest = hashlib.blake2b(digest_size=8)
    try:
        _add(digest, example)
    except Exception:
        return ""  # it is only for a warning
    return digest.hexdigest()


def _add(digest: Any, value: Any) -> None:
    digest.update(type(value).__name__.encode())
    if isinstance(value, torch.Tensor):
        digest.update(str(tuple(value.shape)).encode())
        flat = value.detach().cpu().to_dense().reshape(-1).contiguous()
        _add(digest, flat.view(torch.uint8).numpy())
    elif isinstance(value, np.ndarray) and value.dtype.hasobject:
        _add(digest, value.tolist())
    elif isinstance(value, (np.ndarray, np.generic)):
        flat = np.ascontiguousarray(value).reshape(-1)
        every = 1 + flat.size // SAMPLED
        digest.update(str(np.shape(value)).encode() + flat[::every].tobytes())
    elif isinstance(value, Mapping):
        _add(digest, [(k, value[k]) for k in value])
    elif isinstance(value, (list, tuple)):
        for part in value:
            _add(digest, part)
    elif isinstance(value, (str, bytes, int, float, complex, type(None))):
        digest.update(repr(value).encode())
    elif isinstance(value, (set, frozenset)):
        _add(digest, sorted(map(digest_of, value)))
    elif hasattr(value, "tobytes"):  # images
        digest.update(value.tobytes())
    else:
        _add(digest, vars(value))


def as_it_is(examples: Any) -> Any:
    """No collate."""
    return examples
