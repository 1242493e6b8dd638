"""What a failed pass holds is let go of."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor

from rightbatch.training.recovery import release


def failed(held: list[weakref.ref[Tensor]]) -> Exception:
    """An error of a frame that holds a tensor."""

    def run() -> None:
        activation = torch.zeros(10)
        held.append(weakref.ref(activation))
        raise MemoryError(float(activation.sum()))

    try:
        run()
    except MemoryError as error:
        return error
    raise AssertionError


def chained(kind: str, held: list[weakref.ref[Tensor]]) -> Exception:
    inner, outer = failed(held), ValueError("the user's own")
    if kind == "in a group":
        return ExceptionGroup("of two ranks", [ValueError("no"), inner])
    if kind == "as a cause":
        outer.__cause__, inner.__cause__ = inner, outer  # and back
    elif kind == "while it was handled":
        outer.__context__, outer.__cause__ = inner, KeyError("another")
    return outer


@pytest.mark.parametrize("kind", ["in a group", "as a cause", "while it was handled"])
def test_frames_behind_an_error_hold_nothing(kind: str) -> None:
    held: list[weakref.ref[Tensor]] = []
    error = chained(kind, held)
    gc.collect()
    assert held[0]() is not None
    release(error)
    assert held[0]() is None
