"""Whether a scalar loss is more than a sum over the halves of the batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from rightbatch.core.errors import SettingError
from rightbatch.core.trees import map_tensors, tensors
from rightbatch.coupling.perturbation import SEED, Kind, Question, changed_batch
from rightbatch.coupling.probe import (
    BEFORE,
    LAST,
    SIDE,
    interaction,
    is_mean_of_means,
)
from rightbatch.coupling.repeated_pass import RepeatedPass


def loss_interaction(repeated: RepeatedPass, kinds: list[Kind]) -> float:
    """How far one half of the batch changes what the other costs, over the loss.

    Each half as it is and in three changed forms, every one beside every other, as
    `find_coupling` does with other examples. Zero up to rounding for a sum over
    examples, a mean, or a mean over parts of them that are counted.

    Args:
        repeated: Passes that return a scalar loss or ``(sum, count)``.
        kinds: Of change that the model bears.

    Returns:
        0.0 where nothing is seen, or the loss is one for each example.

    Raises:
        SettingError: The loss is none of these.
    """
    batch = repeated.batch
    result = repeated.result(batch)
    pair = isinstance(result, tuple) and len(result) == 2
    value, count = result if pair else (result, 1)
    if not isinstance(value, Tensor) or (pair and not _are_numbers(value, count)):
        raise SettingError(
            "the loss is no tensor, and no pair (sum, count)",
            seen=f"a {type(result).__name__}",
            why="whether it is a sum over examples is asked of its value",
            fix="return the loss alone; logits and logs belong elsewhere",
        )
    if value.numel() != 1:
        return 0.0
    count = next(t.shape[0] for t in tensors(batch) if t.dim())
    front = torch.arange(count) < count // 2
    questions = [
        Question(across="loss", axes=(0,), changed=half, watched=~half)
        for half in (front, ~front)
    ]

    def changed(question: Question, number: int) -> Any:
        kind = kinds[number % len(kinds)]
        return changed_batch(batch, question, kind, seed=SEED + number)

    forms = [
        [batch, *(changed(question, number) for number in range(1, SIDE))]
        for question in questions
    ]

    def cost(first: int, second: int) -> float:
        both = _joined(forms[0][first], forms[1][second], questions[1])
        result = repeated.result(both)
        return float((result[0] if pair else result).detach())

    table = np.array([[cost(i, j) for j in range(SIDE)] for i in range(SIDE)])
    largest = float(abs(table).max())
    tolerance = largest * (LAST * torch.finfo(value.dtype).eps + BEFORE)
    if not np.isfinite(table).all() or interaction(table) <= tolerance:
        return 0.0
    if not pair and is_mean_of_means(table, tolerance):
        return 0.0
    return interaction(table) / largest


def _are_numbers(*values: Any) -> bool:
    return all(
        v.numel() == 1 if isinstance(v, Tensor) else isinstance(v, (int, float))
        for v in values
    )


def _joined(first: Any, second: Any, question: Question) -> Any:
    """The first batch, with the second where the question changes it."""
    others = iter(tensors(second))

    def join(tensor: Tensor) -> Tensor:
        other = next(others)
        if not question.concerns(tensor):
            return tensor
        return torch.where(question.mask(tensor), other, tensor)

    return map_tensors(join, first)
