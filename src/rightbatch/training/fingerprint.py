"""Whether a job is still the one that a run was begun with."""

from __future__ import annotations

import sys
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from rightbatch.core.trees import leaves
from rightbatch.data.loading.fetch import Fetch, Piece
from rightbatch.data.loading.prefetch import start_method
from rightbatch.job.job import Job
from rightbatch.training.code_digest import code_digest, tensor_digest

# Examples, evenly spaced, stand for all: of tensors as many as hold so many numbers,
# some ten milliseconds; of data sets, which may be slow to read, so many. [assumed]
NUMBERS, READ = 4_000_000, 8
PYTHON, CODE = "Python", "code of "
FORMAT = "rightbatch/job/1"


def fingerprint(
    job: Job, network: nn.Module, *, data: str = "", workers: bool = False
) -> dict[str, str]:
    """What a job computes, in words and digests, to be held against another life's.

    Nothing is trained, and nothing drawn from the global generators.

    Args:
        job: What is trained.
        network: Its model.
        data: What tells its data set from others, if it says so itself.
        workers: Read it in a process of its own, as training will: what a data set
            opens with its first example must not be shared with processes forked later.

    Returns:
        By subject; "" where it cannot be told, as of examples that come out otherwise
        each time they are read.
    """
    types = sorted({str(t.dtype) for t in network.state_dict().values() if _is(t)})
    # Of a data set the class: what an object holds shows in its examples.
    data_set = type(getattr(job.data, "dataset", job.data))
    functions = {
        "loss": job.loss,
        "evaluate": job.evaluate,
        "collate": job.collate,
        "the data set": data_set,
    }
    return {
        PYTHON: ".".join(map(str, sys.version_info[:2])),
        "fingerprint of the data": data,
        **_examples(job, workers),
        "layers of the model": _code(network),
        "types in the model": ", ".join(types),
        "target": str(job.target),
        "goal": job.goal,
        **{CODE + name: _code(value) for name, value in functions.items()},
    }


def changes(then: dict[str, str], now: dict[str, str]) -> list[str]:
    """What has changed, one phrase for each subject."""
    other_python = then.get(PYTHON) != now[PYTHON]
    found = []
    for subject in now:
        before, after = then.get(subject, ""), now[subject]
        if not before or not after or before == after:
            continue
        if subject.startswith(CODE) and other_python:
            continue  # not to be compared
        digests = len(before) == len(after) == 16
        found.append(subject if digests else f"{subject} ({before} then, {after} now)")
    return found


def _examples(job: Job, workers: bool) -> dict[str, str]:
    """Some examples as training reads them, collated."""
    count = READ
    if in_memory := isinstance(job.data, tuple):
        each = sum(t[:1].numel() for t in job.data)
        count = max(READ, NUMBERS // max(each, 1))
    places = np.linspace(0, job.length - 1, min(count, job.length))
    indices = places.round().astype(np.int64)
    piece = Piece(indices, indices.astype(np.uint64))
    reads = _Reads(Fetch(job.data, job.collate, seeded=True, seed_fn=None), piece)
    try:
        if workers and not in_memory:
            read = list(_in_a_process(reads))
        else:
            read = [reads[number] for number in range(1 if in_memory else 2)]
        first, again = list(leaves(read[0])), list(leaves(read[-1]))
        same = _digest(first) == _digest(again)
    except Exception:  # training meets it too, if it reads these, and tells it
        return {}
    types = [str(leaf.dtype) if _is(leaf) else type(leaf).__name__ for leaf in first]
    return {
        "examples of the data": _digest(first) if same else "",
        "types in a batch": ", ".join(types[:8]),
    }


class _Reads:
    """The same examples read twice, as a data set of two."""

    def __init__(self, fetch: Fetch, piece: Piece) -> None:
        self._fetch, self._piece = fetch, piece

    def __len__(self) -> int:
        return 2

    def __getitem__(self, number: int) -> Any:
        return self._fetch(self._piece)


def _in_a_process(reads: _Reads) -> DataLoader[Any]:
    return DataLoader(
        reads,  # pyrefly: ignore[bad-argument-type]
        batch_size=None,
        num_workers=1,
        multiprocessing_context=start_method(None),
        generator=torch.Generator(),  # not the global one
    )


def _digest(batch: list[Any]) -> str:
    """Of the leaves of a batch; of texts every letter."""
    parts = [
        tensor_digest(leaf, NUMBERS)
        if _is(leaf)
        else repr(leaf)
        if isinstance(leaf, (str, bytes))
        else code_digest(leaf)
        for leaf in batch
    ]
    return blake2b("\n".join(parts).encode(), digest_size=8).hexdigest()


def _code(value: Any) -> str:
    """Of what a user has written; "" where it does not let itself be looked at."""
    try:
        return code_digest(value)
    except Exception:
        return ""


def _is(value: Any) -> bool:
    return isinstance(value, Tensor)
