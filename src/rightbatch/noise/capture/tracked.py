"""Tensors that are parameters, or views of them, in one forward pass."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from rightbatch.core.torch_private import storage_id
from rightbatch.noise.capture.group_norms import ParameterKey


@dataclass(frozen=True, slots=True)
class TableRows:
    """Rows of a table that were looked up without examples, as positions are.

    Attributes:
        ids: Which rows.
        rows: How many the table has.
        padding: The row that has no gradient, or -1.
    """

    ids: Tensor
    rows: int
    padding: int


@dataclass(frozen=True, slots=True, eq=False)
class TrackedTensor:
    """A tensor that is a parameter, or comes from one, in the forward pass.

    Attributes:
        key: The parameter, or which entries of it.
        tensor: What the operation is given.
        root: The parameter, or the last copy of it in another precision or order, that
            the tensor is a view of.
        root_key: What the root is.
        table_rows: Where these are rows of the parameter looked up without examples.
        transpose_of: What this is the transpose of, if it is one.
    """

    key: ParameterKey
    tensor: Tensor
    root: Tensor
    root_key: ParameterKey
    table_rows: TableRows | None = None
    transpose_of: TrackedTensor | None = None

    @classmethod
    def of(cls, key: ParameterKey, tensor: Tensor) -> TrackedTensor:
        """A parameter, or a copy of one."""
        return cls(key, tensor, tensor, key)


@dataclass
class TrackedTensors:
    """All of them, by ``id``."""

    known: dict[int, TrackedTensor] = field(default_factory=dict)

    def find(self, value: Any) -> TrackedTensor | None:
        """The tracked tensor this is, if it is one."""
        tracked = self.known.get(id(value))
        return tracked if tracked is not None and value.requires_grad else None

    def add(self, tracked: TrackedTensor) -> None:
        """Another one."""
        self.known[id(tracked.tensor)] = tracked

    def add_view(self, source: TrackedTensor, view: Tensor) -> None:
        """The same numbers, or some of them, in another shape or precision."""
        before = source.tensor
        if (rows := source.table_rows) is not None:
            if view.numel() == before.numel() and view.shape[-1] == before.shape[-1]:
                rows = replace(rows, ids=rows.ids.reshape(view.shape[:-1]))
                self.add(replace(source, tensor=view, table_rows=rows))
            return
        root, root_key = source.root, source.root_key
        if storage_id(view) != storage_id(root):  # a copy
            if view.shape == before.shape:  # it stays a transpose, if it is one
                copied = replace(source, tensor=view, root=view, root_key=source.key)
                self.add(copied)
            elif view.numel() == before.numel():
                self.add(TrackedTensor.of(source.key, view))
            return
        part = _entries(view, root)
        key = root_key
        if part != _entries(root, root):
            key = ParameterKey(root_key.index, (*root_key.part, *part))
        transposed = (
            view.dim() == before.dim() == 2
            and view.shape == before.mT.shape
            and view.stride() == before.mT.stride()
        )
        if transposed and (back := source.transpose_of) is not None:
            self.add(replace(back, tensor=view))
        else:
            of = source if transposed else None
            self.add(TrackedTensor(key, view, root, root_key, transpose_of=of))


def _entries(view: Tensor, root: Tensor) -> tuple[int, ...]:
    """Which entries of its root a view has, and in which order, whatever its shape.

    Where it begins, then size and stride of every axis; axes of size one are left out,
    and axes that run on in each other are one.
    """
    axes: list[tuple[int, int]] = []
    for size, stride in zip(view.shape, view.stride(), strict=True):
        if size == 1:
            continue
        if axes and axes[-1][1] == size * stride:
            axes[-1] = axes[-1][0] * size, stride
        else:
            axes.append((size, stride))
    offset = int(view.storage_offset() - root.storage_offset())
    return offset, *(number for axis in axes for number in axis)
