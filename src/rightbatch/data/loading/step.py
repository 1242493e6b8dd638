"""A step and its micro-batches, and the plain loop over steps that have one each."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from rightbatch.core.errors import SettingError


@dataclass(frozen=True, slots=True, eq=False)
class MicroBatch:
    """One micro-batch of a step.

    Attributes:
        data: What the collate made of it.
        share: Multiply its mean loss by this: the sum over a rank's micro-batches,
            averaged over ranks as DDP does, is the mean over the whole batch.
        token_share: The same for a mean over tokens; None where they are not known.
        weights: Importance weight of each example, shape ``(examples,)``; 1 without.
        groups: Stratum or class of each example, shape ``(examples,)``; 0 without.
        indices: Which examples, shape ``(examples,)``.
    """

    data: Any
    share: float
    token_share: float | None
    weights: Tensor
    groups: Tensor
    indices: Tensor


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Step:
    """One optimizer step: iterate over it for its micro-batches.

    The stream moves on when the last one has been handed out. A step that is left
    before is not counted, and comes again; ``stream.skip()`` gives it up.

    Attributes:
        number: Steps before it.
        epoch: Epoch in which it begins.
        examples: Examples over all ranks; of this rank where the source is sharded.
        local_examples: Examples of this rank.
        repeats: Of those over all ranks, the ones that only fill it up
            (``tail="pad"``).
        tokens: Tokens over all ranks, or None.
        weighted: Whether its examples carry importance weights.
        uneven: What would give every rank as many examples; "" where they have.
        micro_batches: How many.
        read: Reads them.
    """

    number: int
    epoch: int
    examples: int
    local_examples: int
    repeats: int = 0
    tokens: int | None = None
    weighted: bool = False
    uneven: str = ""
    micro_batches: int
    read: Callable[[], Iterator[MicroBatch]]

    def __len__(self) -> int:
        return self.micro_batches

    def __iter__(self) -> Iterator[MicroBatch]:
        return self.read()


class PlainLoop:
    """Iterating over a stream itself: one batch for each of its `steps`."""

    _uneven_told = False

    def steps(self) -> Iterator[Step]:
        """What is left of this epoch, step by step."""
        raise NotImplementedError  # the stream's

    def __iter__(self) -> Iterator[Any]:
        """What is left of this epoch, one collated batch per step.

        With weights (`Strata`): pairs ``(batch, weights)``.

        Raises:
            SettingError: A step has several micro-batches.
            Exception: As `steps`.
        """
        for step in self.steps():
            if len(step) > 1:
                raise SettingError(
                    f"a step of this stream has {len(step)} micro-batches",
                    seen=f"{step.local_examples} examples in it",
                    why="one optimizer step needs all of them",
                    fix="for step in stream.steps(): for micro in step: "
                    "(loss(micro.data) * micro.share).backward()",
                )
            if step.uneven and not self._uneven_told:
                self._uneven_told = True
                warnings.warn(
                    "ranks have different numbers of examples in some steps (such as "
                    f"{step.local_examples} of {step.examples} here): a plain mean "
                    "over ranks weighs them wrongly; read stream.steps() and multiply "
                    f"each loss by micro.share, or {step.uneven}",
                    stacklevel=2,
                )
            (micro,) = step
            yield (micro.data, micro.weights) if step.weighted else micro.data


def step_left_open(number: int) -> SettingError:
    """What is said where the next step is asked for before one has ended."""
    return SettingError(
        f"step {number} was not gone through to its end",
        seen="the next step was asked for",
        why="its examples come next, however often a step is asked for",
        fix="for micro in step: ...; to give a step up: stream.skip()",
    )


def step_is_over(number: int, now: int) -> SettingError:
    """What is said where a micro-batch of a step is asked for that is behind."""
    return SettingError(
        f"step {number} is over",
        seen=f"the stream stands at step {now}",
        why="its examples are handed out once; skip, set_epoch and load_state_dict "
        "end a step",
        fix="go through a step once, before asking for the next",
    )
