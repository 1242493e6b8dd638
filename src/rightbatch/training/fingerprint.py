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
    state = network.state_dict().values()
    types = sorted({str(t.dtype) for t in state if isinstance(t, Tensor)})
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
    pieces: Any = [Piece(indices, indices.astype(np.uint64))] * (1 if in_memory else 2)
    fetch: Any = Fetch(job.data, job.collate, seeded=True, seed_fn=None)
    workers = workers and not in_memory
    reads = DataLoader(
        pieces,
        batch_size=None,
        collate_fn=fetch,
        num_workers=int(workers),
        multiprocessing_context=start_method(None) if workers else None,
        generator=torch.Generator(),  # not the global one
    )
    try:
        read = [list(leaves(batch)) for batch in reads]
        digests = [_digest(batch) for batch in read]
    except Exception:  # training meets it too, if it reads these, and tells it
        return {}
    types = [
        str(x.dtype) if isinstance(x, Tensor) else type(x).__name__ for x in read[0]
    ]
    return {
        "examples of the data": digests[0] if digests[0] == digests[-1] else "",
        "types in a batch": ", ".join(types[:8]),
    }


def _digest(batch: list[Any]) -> str:
    """Of the leaves of a batch; of texts every letter."""
    parts = []
    for leaf in batch:
        if isinstance(leaf, np.ndarray):
            numbers = leaf.dtype.kind in "biuf"
            leaf = torch.tensor(leaf) if numbers else repr(leaf.tolist())
        if isinstance(leaf, Tensor):
            parts.append(tensor_digest(leaf, NUMBERS))
        else:
            plain = isinstance(leaf, (str, bytes))
            parts.append(repr(leaf) if plain else code_digest(leaf))
    return blake2b("\n".join(parts).encode(), digest_size=8).hexdigest()


def _code(value: Any) -> str:
    """Of what a user has written; "" where it does not let itself be looked at."""
    try:
        return code_digest(value)
    except Exception:
        return ""
