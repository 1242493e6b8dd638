"""What a stream is given: a data set, and what a DataLoader calls otherwise."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    IterableDataset,
    StackDataset,
    Subset,
)

from rightbatch.core.errors import SettingError
from rightbatch.data.order.order import digest_of

# A DataLoader's arguments that a stream has by another name.
_INSTEAD = {
    "shuffle": 'order="shuffled", the default, or order="sequential"',
    "drop_last": 'tail="drop"',
    "sampler": "order=..., a name or one of rb.data: Strata, Pairs, Tokens, Weighted, "
    "Distinct",
    "batch_sampler": "order=..., or rb.data.BatchSampler in a loader of your own",
    "generator": "seed=...",
    "persistent_workers": "leave it out: workers persist; stream.close() ends them",
    "pin_memory_device": "pin_memory=True",
    "in_order": "leave it out: batches come in order",
}


def fingerprint_of(dataset: Any) -> str:
    """What tells a data set from others of equal length, if it says so; or ""."""
    if parts := parts_of(dataset):
        joined = "+".join(filter(None, map(fingerprint_of, parts)))
        # A random split without a seed is another data set.
        return joined + _chosen_by(dataset) if isinstance(dataset, Subset) else joined
    form = getattr(dataset, "format", None)
    if isinstance(form, dict) and form.get("type") == "custom":
        # Hugging Face's with a transform: its own fingerprint is of the transform too,
        # another one in each process if that holds a random generator or a lock.
        return ""
    return str(getattr(dataset, "_fingerprint", ""))


def parts_of(dataset: Any) -> list[Any]:
    """The data sets that one of torch's kinds is made of; of others none."""
    if isinstance(dataset, Subset):
        return [dataset.dataset]
    if isinstance(dataset, (ConcatDataset, StackDataset)):
        parts = dataset.datasets
        return list(parts.values() if isinstance(parts, dict) else parts)
    return []


def _chosen_by(subset: Any) -> str:
    """What tells the indices of a subset from others; "" where they are no numbers."""
    try:
        indices = np.asarray(subset.indices)
    except ValueError:  # of several lengths
        return ""
    return f"[{digest_of(indices)}]" if indices.dtype.kind in "iu" else ""


def subset_of(fingerprint: str) -> str:
    """The part of a fingerprint that `Subset` has added."""
    return "".join(re.findall(r"\[[^\[\]]*\]", fingerprint))


def refuse(others: Mapping[str, object]) -> None:
    """Say what another argument is called here.

    Raises:
        SettingError: It is one of a DataLoader's.
        TypeError: It is none.
    """
    for name in others:
        if name not in _INSTEAD:
            raise TypeError(f"BatchStream has no argument {name!r}")
        raise SettingError(
            f"a BatchStream has no {name}",
            seen=f"{name}={others[name]!r:.60}",
            fix=_INSTEAD[name]
            if others[name] is not False or name == "shuffle"
            else "leave it out",
        )


def length_of(dataset: Any) -> int:
    """How many examples; refuses what cannot be read by number.

    Raises:
        SettingError: It cannot, or there are none.
    """
    if isinstance(dataset, tuple):
        sizes = [len(t) if isinstance(t, Tensor) and t.ndim else -1 for t in dataset]
        if not sizes or -1 in sizes or len(set(sizes)) > 1:
            kinds = ", ".join(type(t).__name__ for t in dataset)
            raise SettingError(
                "a tuple of data must hold tensors with one common first axis",
                seen=f"first axes {sizes}" if -1 not in sizes else kinds,
                fix="(inputs, targets); torch.from_numpy(array) for arrays; for other "
                "sources torch.utils.data.StackDataset(inputs, targets)",
            )
        length = sizes[0]
    elif isinstance(dataset, DataLoader):
        raise SettingError(
            "a stream is made of a data set",
            seen=f"a DataLoader of a {type(dataset.dataset).__name__}",
            fix="its data set: loader.dataset",
        )
    elif isinstance(dataset, (IterableDataset, Mapping)) or not (
        hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    ):
        raise SettingError(
            "the data set cannot be read by number",
            seen=f"a {type(dataset).__name__}, which has no examples 0 to N - 1",
            why="the order of examples is fixed by number, to be cut anywhere",
            fix=_one_of(dataset)
            if isinstance(dataset, Mapping)
            else "a map-style data set, or a tuple of tensors; for one that can only "
            "be iterated: rb.data.ShardStream",
        )
    else:
        length = len(dataset)
    if length < 1:
        raise SettingError("the data set is empty", seen="0 examples")
    return length


def _one_of(parts: Mapping[Any, Any]) -> str:
    sizes = {len(p) if hasattr(p, "__len__") else -1 for p in parts.values()}
    if parts and len(sizes) == 1:
        return "torch.utils.data.StackDataset(**parts)"
    return f"one of its parts: data[{next(iter(parts), 'train')!r}]"
