"""Norms and inner products of gradients, summed in single precision at least."""

from __future__ import annotations

import torch
from torch import Tensor


def sum_dtype(tensor: Tensor) -> torch.dtype:
    """The precision for sums of squares: single at least."""
    return torch.promote_types(tensor.dtype, torch.float32)


def as_real(tensor: Tensor) -> Tensor:
    """The same numbers, complex ones as pairs on a last axis."""
    if not tensor.is_complex():
        return tensor
    return torch.view_as_real(tensor.resolve_conj())


def norm(tensor: Tensor) -> Tensor:
    """The Euclidean norm of all entries, a scalar."""
    return torch.linalg.vector_norm(tensor, dtype=sum_dtype(tensor))


def squared_norm(tensor: Tensor) -> Tensor:
    """The squared Euclidean norm of all entries, a scalar."""
    return norm(tensor).square()


def inner_product(a: Tensor, b: Tensor) -> Tensor:
    """Sum of the products of two tensors' entries, a scalar.

    Complex entries are pairs of real ones, as optimizers see them.
    """
    a, b = as_real(a), as_real(b)
    dtype = sum_dtype(a)
    if a.dtype == b.dtype == dtype and a.is_contiguous() and b.is_contiguous():
        return torch.dot(a.view(-1), b.view(-1))
    return (a.to(dtype) * b.to(dtype)).sum()
