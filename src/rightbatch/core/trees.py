"""One way to walk, count, cut and move a batch, whatever it is nested in.

A batch is a tree. Its nodes are dicts and other mappings (``BatchEncoding``), lists,
tuples, namedtuples and dataclasses; everything else is a leaf. Walking is torch's
pytree's; mappings and dataclasses that pytree does not know are opened here.

What is cut out of a batch of ``count`` examples:

* a tensor or numpy array whose first axis is ``count`` long is cut along it (a view); a
  ``PackedSequence`` of so many sequences is packed anew, and nested and sparse (COO)
  tensors are made anew;
* a list or tuple of ``count`` entries holds one entry for each example, be it a tensor,
  a text or a dict, and is cut itself; one of another length holds fields, and each of
  them is cut. A batch that is itself such a list of tensors of ``count`` rows, as
  ``default_collate`` makes it of two examples with two fields, holds fields;
* what belongs to all examples is shared: numbers, texts, paths, functions, modules,
  tensors without axes or with another first axis.

What could be read in two ways is refused with a `JobError`, never guessed: a list
inside a batch with ``count`` entries that could all be cut as well; an object that is
none of the above, such as a graph or a data frame; a batch in which nothing is cut.
"""

from __future__ import annotations

import copy
import dataclasses
import enum
import itertools
import numbers
import pathlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence, unpack_sequence

from rightbatch.core.errors import JobError
from rightbatch.core.text import first_line
from rightbatch.core.torch_private import tree_iter, tree_map

_FIX = (
    "collate to tensors with the examples first, or pass split=: a function "
    "(batch, start, stop) that cuts out examples, and count=: batch -> how many it has"
)
_SCALARS = (str, bytes, int, float, complex, type(None))
_SHARED = (
    *_SCALARS,
    numbers.Number,
    np.generic,
    enum.Enum,
    pathlib.PurePath,
    Tensor,
    np.ndarray,
    torch.device,
    torch.dtype,
)


def leaves(batch: Any) -> Iterator[Any]:
    """Everything in a batch that is no container, in order.

    Example:
        >>> list(leaves({"x": 1, "pair": (2, [3, "a"])}))
        [1, 2, 3, 'a']
    """
    for part in tree_iter(batch, is_leaf=_is_packed):
        fields = _opened(part)
        if fields is None:
            yield part
        else:
            yield from leaves(fields)


def tensors(batch: Any) -> list[Tensor]:
    """The tensors among the `leaves`."""
    return [leaf for leaf in leaves(batch) if isinstance(leaf, Tensor)]


def map_leaves(
    f: Callable[[Any], Any],
    batch: Any,
    *,
    is_leaf: Callable[[Any], bool] = lambda part: False,
) -> Any:
    """The same batch with ``f(leaf)`` in the place of every leaf.

    Args:
        f: Called on the leaves in the order of `leaves`.
        batch: Left as it is.
        is_leaf: Whether a container is to be given to ``f`` whole.

    Raises:
        JobError: It holds a mapping that cannot be made from a dict.

    Example:
        >>> map_leaves(lambda leaf: 10 * leaf, {"x": 1, "pair": (2, [3])})
        {'x': 10, 'pair': (20, [30])}
    """

    def visit(part: Any) -> Any:
        fields = None if is_leaf(part) else _opened(part)
        if fields is None:
            return f(part)
        inside = {k: map_leaves(f, v, is_leaf=is_leaf) for k, v in fields.items()}
        return _closed(part, inside)

    return tree_map(
        visit, batch, is_leaf=lambda part: _is_packed(part) or is_leaf(part)
    )


def map_tensors(f: Callable[[Tensor], Any], batch: Any) -> Any:
    """The same batch with ``f(tensor)`` in the place of every tensor."""
    return map_leaves(lambda x: f(x) if isinstance(x, Tensor) else x, batch)


def to_device(batch: Any, device: torch.device | str) -> Any:
    """Move all that has a method ``to``, such as tensors; the rest stays as it is."""

    def movable(part: Any) -> bool:
        return callable(getattr(part, "to", None))

    return map_leaves(
        lambda leaf: leaf.to(device) if movable(leaf) else leaf, batch, is_leaf=movable
    )


def example_count(batch: Any, expected: int | None = None) -> int:
    """How many examples a batch holds: what its tensors and lists agree on.

    Args:
        batch: Tensors, arrays and lists in any nesting.
        expected: What whoever made the batch says; it only has to be possible.

    Raises:
        JobError: They do not agree, or allow several counts or none; or not
            ``expected``.

    Example:
        >>> example_count({"x": torch.zeros(4, 2), "names": ["a", "b", "c", "d"]})
        4
    """
    possible = _counts(batch) or set()
    if expected is None and _is_list(batch):  # fields, if they say anything
        fields = _agreed(batch)
        possible = possible if fields is None else fields
    if expected is not None and expected in possible:
        return expected
    if expected is None and len(possible) == 1:
        return next(iter(possible))
    axes = sorted({size for leaf in leaves(batch) if (size := _rows(leaf)) is not None})
    seen = f"first axes {axes}" if axes else f"{type(batch).__name__} without a tensor"
    raise _unclear(seen if expected is None else f"{expected} examples, and {seen}")


def slice_batch(batch: Any, start: int, stop: int, count: int) -> Any:
    """The examples from ``start`` to ``stop`` of a batch of ``count``.

    Nothing is copied; what belongs to all examples is shared.

    Raises:
        JobError: What belongs to which example cannot be told.

    Example:
        >>> slice_batch({"x": torch.arange(4), "names": ["a", "b", "c", "d"]}, 1, 3, 4)
        {'x': tensor([1, 2]), 'names': ['b', 'c']}
    """
    if (start, stop) == (0, count):
        return batch
    return _selected(batch, slice(start, stop), count)


def select_examples(batch: Any, indices: list[int], count: int) -> Any:
    """The examples at these indices of a batch of ``count``, in this order.

    Raises:
        JobError: What belongs to which example cannot be told.

    Example:
        >>> select_examples((torch.arange(3), ["a", "b", "c"]), [2, 0], 3)
        (tensor([2, 0]), ['c', 'a'])
    """
    return _selected(batch, indices, count)


def even_pieces(count: int, most: int) -> list[tuple[int, int]]:
    """Nearly equal pieces of at most ``most`` examples, as (start, stop).

    Example:
        >>> even_pieces(17, 8)
        [(0, 6), (6, 12), (12, 17)]
    """
    pieces = -(-count // most)
    small, larger = divmod(count, pieces)
    sizes = [small + (number < larger) for number in range(pieces)]
    return list(itertools.pairwise(itertools.accumulate(sizes, initial=0)))


def _selected(batch: Any, index: slice | list[int], count: int) -> Any:
    cut = False

    def one_for_each(part: Any) -> bool:
        if not _is_list(part) or len(part) != count:
            return False
        fields = count in (_agreed(part) or ())
        cuttable = part is batch and any(_rows(field) == count for field in part)
        if fields and cuttable:
            return False
        if fields or cuttable:
            raise _unclear(f"{count} examples, and a list of {count} that hold {count}")
        return True

    def select(part: Any) -> Any:
        nonlocal cut
        if one_for_each(part):
            cut = True
            return _taken(part, index)
        if _rows(part) == count:
            cut = True
            return _rows_taken(part, index)
        if not isinstance(part, _SHARED) and not callable(part):
            raise _unclear(f"{count} examples, and an object: {type(part).__name__}")
        return part

    def whole(part: Any) -> bool:  # pytree would open a queue
        return one_for_each(part) or isinstance(part, deque)

    selected = map_leaves(select, batch, is_leaf=whole)
    if not cut:
        raise _unclear(f"{count} examples, and no tensor or list of this length")
    return selected


def _rows_taken(part: Any, index: slice | list[int]) -> Any:
    """Of a tensor or array by its first axis, whatever its layout."""
    if _is_packed(part):
        return pack_sequence(_taken(unpack_sequence(part), index), enforce_sorted=False)
    if isinstance(part, Tensor) and part.is_nested:
        rows = _taken(list(part.unbind()), index)
        return torch.nested.as_nested_tensor(rows, layout=part.layout)
    if not isinstance(part, Tensor) or part.layout == torch.strided:
        return part[index]
    if part.layout == torch.sparse_coo:
        chosen = torch.arange(len(part))[index]
        return part.index_select(0, chosen.to(part.device))
    raise _unclear(f"a tensor of layout {part.layout}")


def _taken(entries: Any, index: slice | list[int]) -> Any:
    if isinstance(index, slice):
        return entries[index]
    return type(entries)(entries[i] for i in index)


def _counts(part: Any) -> set[int] | None:
    """How many examples a part of a batch may hold; None if it may be any number."""
    rows = _rows(part)
    if rows is not None:
        return {rows}
    if _is_list(part):
        return {len(part)} | (_agreed(part) or set())
    fields = part._asdict() if hasattr(part, "_fields") else _opened(part)
    return None if fields is None else _agreed(fields.values())


def _agreed(parts: Iterable[Any]) -> set[int] | None:
    """What all parts allow; None if none of them says anything."""
    said = [_counts(part) for part in parts if not isinstance(part, _SCALARS)]
    sets = [counts for counts in said if counts is not None]
    return set.intersection(*sets) if sets else None


def _rows(part: Any) -> int | None:
    """Length of the first axis of a tensor or array, or sequences in a packed one."""
    if _is_packed(part):
        return int(part.batch_sizes[0])
    array = isinstance(part, (Tensor, np.ndarray)) and part.ndim > 0
    if not array:
        return None
    # A nested tensor of the strided layout has no length, and no shape.
    return part.size(0) if isinstance(part, Tensor) else len(part)


def _is_packed(part: Any) -> bool:
    return isinstance(part, PackedSequence)


def _is_list(part: Any) -> bool:
    return isinstance(part, (list, tuple)) and not hasattr(part, "_fields")


def _opened(part: Any) -> Mapping[Any, Any] | None:
    """The fields of a container that torch's pytree takes for a leaf; else None."""
    if isinstance(part, (Tensor, *_SCALARS)):
        return None
    if isinstance(part, Mapping):
        return dict(part)
    if _is_list(part):
        return dict(enumerate(part))
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        return {f.name: getattr(part, f.name) for f in dataclasses.fields(part)}
    return None


def _closed(part: Any, fields: dict[Any, Any]) -> Any:
    """A container of the same type with other fields."""
    if dataclasses.is_dataclass(part):
        made: Any = copy.copy(part)
        for name, value in fields.items():
            object.__setattr__(made, name, value)  # frozen ones too
        return made
    try:
        return type(part)(fields if isinstance(part, Mapping) else fields.values())
    except TypeError as error:
        raise JobError(
            f"the batch holds a {type(part).__name__}, which cannot be made again",
            seen=first_line(error),
            why="moved or cut to some of its examples it must stay what it is",
            fix="collate to a plain dict, or to a class made from one",
        ) from error


def _unclear(seen: str) -> JobError:
    return JobError(
        "the batch cannot be split by itself",
        seen=seen,
        why="what belongs to which example cannot be told",
        fix=_FIX,
    )
