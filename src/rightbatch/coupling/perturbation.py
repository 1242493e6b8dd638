"""Which numbers of a batch are changed, and which outputs must not move.

Every change keeps all shapes, so that a kernel sums in the same order and outputs that
do not depend on what was changed keep every bit [measured: MLP, convolution, attention
and LSTM on CPU, float32 and bfloat16].
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from rightbatch.core.trees import map_tensors, tensors

Across = Literal["examples", "time", "documents", "loss", "ranks", "placement"]
Kind = Literal["another example", "noise", "large noise", "small noise"]

# Standard deviations of a tensor added to its floats. Large ones let a row be the
# batch's largest or overflow an expert; small ones are a derivative. [assumed]
SIZES = {"noise": 3.0, "large noise": 100.0, "small noise": 1e-2}
SEED = 0  # of what is drawn
MOMENTS = 8  # from which time is changed on [assumed]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is changed in a batch, and what must then stay as it is.

    Attributes:
        across: What the question is about.
        axes: The axes of an input that ``changed`` numbers: ``(0,)`` for examples.
        changed: Where the inputs change.
        watched: Where the outputs must not.
    """

    across: Across
    axes: tuple[int, ...]
    changed: Bool[Tensor, "*positions"]
    watched: Bool[Tensor, "*positions"]

    def concerns(self, tensor: Tensor) -> bool:
        """Whether a tensor has these axes, of these lengths."""
        if tensor.is_nested or tensor.dim() <= max(self.axes):
            return False
        return tuple(tensor.shape[a] for a in self.axes) == tuple(self.changed.shape)

    def mask(self, tensor: Tensor) -> Tensor:
        """``changed``, in a shape that broadcasts over a tensor."""
        sizes = [size if a in self.axes else 1 for a, size in enumerate(tensor.shape)]
        return self.changed.reshape(sizes).to(tensor.device)


def between_examples(count: int) -> Iterator[Question]:
    """Half of the rows against the other half, by each bit of the row's number.

    Two rows differ in a bit: ``2 ceil(log2 count)`` questions ask for every ordered
    pair.

    Example:
        >>> len(list(between_examples(8)))
        6
    """
    yield from _by_bits("examples", (0,), torch.arange(count))


def between_documents(documents: Tensor) -> Iterator[Question]:
    """The documents packed into a row against each other, by bits as well.

    Args:
        documents: Whole numbers, (rows, steps); equal ones in a row are one document.
    """
    rows = [torch.unique(row, return_inverse=True)[1] for row in documents.cpu()]
    yield from _by_bits("documents", (0, 1), torch.stack(rows))


def from_a_step_on(axis: int, steps: int) -> Iterator[Question]:
    """The steps from ``t`` on are changed, those before are watched."""
    for t in sorted({max(1, steps * k // MOMENTS) for k in range(1, MOMENTS)}):
        later = torch.arange(steps) >= t
        yield Question(across="time", axes=(axis,), changed=later, watched=~later)


def one_row(row: int, count: int) -> Question:
    """One example changed, all others watched."""
    chosen = torch.arange(count) == row
    return Question(across="examples", axes=(0,), changed=chosen, watched=~chosen)


def _by_bits(
    across: Across, axes: tuple[int, ...], number: Tensor
) -> Iterator[Question]:
    for bit in range(int(number.max()).bit_length()):
        chosen = (number >> bit) % 2 == 1
        for changed in (chosen, ~chosen):
            yield Question(across=across, axes=axes, changed=changed, watched=~changed)


def has_floats(batch: Any) -> bool:
    """Whether noise can be added to a batch's examples."""
    return any(t.dim() and _continuous(t) for t in tensors(batch))


def changed_batch(
    batch: Any, question: Question, kind: Kind, *, seed: int, kept: Tensor | None = None
) -> Any:
    """The batch with other numbers where the question wants them changed.

    ``"another example"`` puts the numbers of another example there, of the same one in
    all tensors, so that everything stays possible. Noise is added to floats; where
    there are none, whole numbers are drawn from those that the tensor holds; masks of
    0 and 1 stay.

    Args:
        batch: Left as it is.
        question: Where.
        kind: How.
        seed: Of what is drawn.
        kept: A tensor that stays as it is: the document numbers.

    Example:
        >>> x = torch.tensor([[1.0], [2.0]])
        >>> changed_batch(x, one_row(1, 2), "another example", seed=0)
        tensor([[1.],
                [1.]])
    """
    generator = torch.Generator().manual_seed(seed)
    floats = has_floats(batch)
    count = next(t.shape[0] for t in tensors(batch) if t.dim())
    shift = torch.randint(1, count, (count,), generator=generator)
    source = (torch.arange(count) + shift) % count

    def change(tensor: Tensor) -> Tensor:
        if not question.concerns(tensor):
            return tensor
        if kept is not None and torch.equal(tensor.cpu(), kept.cpu().to(tensor.dtype)):
            return tensor
        if kind == "another example":
            other = tensor[source.to(tensor.device)]
        elif _continuous(tensor):
            other = _with_noise(tensor, SIZES[kind], generator)
        elif floats or _is_mask(tensor):
            return tensor
        else:
            drawn = torch.randint(tensor.numel(), tensor.shape, generator=generator)
            other = tensor.flatten()[drawn.to(tensor.device)]
        return torch.where(question.mask(tensor), other, tensor)

    return map_tensors(change, batch)


def _continuous(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _is_mask(tensor: Tensor) -> bool:
    return tensor.dtype == torch.bool or bool(((tensor == 0) | (tensor == 1)).all())


def _with_noise(tensor: Tensor, size: float, generator: torch.Generator) -> Tensor:
    finite = tensor.isfinite()
    spread = float(tensor[finite].std()) if finite.sum() > 1 else 0.0
    drawn = torch.randn(tensor.shape, generator=generator)
    noise = (drawn * size * (spread or 1.0)).to(tensor.device, tensor.dtype)
    return torch.where(finite, tensor + noise, tensor)
