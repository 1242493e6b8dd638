"""Whether an example's output depends on another example: by changing the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from rightbatch.core.errors import SettingError
from rightbatch.core.guards import preserved_rng, untouched
from rightbatch.core.torch_private import as_written
from rightbatch.core.trees import leaves, tensors
from rightbatch.coupling.leak import Leaks, Mode
from rightbatch.coupling.leak_search import LeakSearch
from rightbatch.coupling.perturbation import (
    SEED,
    Question,
    between_documents,
    between_examples,
    from_a_step_on,
)
from rightbatch.coupling.probe import nothing_zero
from rightbatch.coupling.rank_leaks import RankSearch

LOSS, CALL = "(loss)", "(call)"


def leaks(
    model: nn.Module,
    batch: Any,
    *,
    loss: Callable[[nn.Module, Any], Any] | None = None,
    call: Callable[[nn.Module, Any], Any] | None = None,
    time_axis: int | None = None,
    documents: Tensor | None = None,
    ranks: bool = False,
) -> Leaks:
    """Find out whether an example's output depends on another example.

    Half of the examples are changed at a time, by the bits of their numbers, so that
    every ordered pair is covered: by other examples of the batch, by noise and by large
    noise. Where something moves that should not, modules are watched to say which is
    the first to spread it. Model, gradients, buffers and random states are left as they
    were, but buffers are written to: call it between steps, not between a forward pass
    and its backward pass.

    It takes 6 ceil(log2 B) + 2 passes in each mode for inputs of floats, a third less
    for whole numbers; far fewer where something leaks. Parameters that are all zero are
    small numbers meanwhile, as a last layer of zeros would hide everything.

    Not seen: a dependence that none of the changes sets off; one over state that is
    kept from one step to the next; a later leak behind the first.

    Args:
        model: As it is; looked at in training mode (in its own, if it trains) and in
            eval mode.
        batch: Tensors in any nesting, examples first; two at least.
        loss: ``(model, batch) ->`` a loss, per example, scalar or ``(sum, count)``.
            What the model returns inside is observed, the loss itself if it is per
            example; a scalar one must be a sum or a mean over examples.
        call: ``(model, batch) -> outputs``. Without it or a loss the model is called
            with the tensor, with a mapping's entries by name, or with the first entry
            of a tuple. What it closes over is not changed.
        time_axis: Axis of the steps in inputs: does an output depend on later steps?
            Outputs have as many, or all but the last.
        documents: Number of the document of every step, (examples, steps), where
            several are packed in a row: does one depend on another? A tensor of these
            numbers in the batch stays as it is; other tensors that say where documents
            begin belong in ``call``.
        ranks: Under torch.distributed, on all ranks together, ask instead: does an
            output depend on examples of another rank, or on the rank that it is made
            on? Random numbers are the same on all ranks for the second question. Every
            rank returns the same.

    Returns:
        What leaks and where; false if nothing does.

    Raises:
        SettingError: The batch cannot be changed, outputs have no examples or are no
            numbers, or arguments contradict each other.
        JobError: The model raised, on the batch as it is or on all that was tried.

    Example:
        >>> import rightbatch as rb
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
        >>> found = rb.coupling.leaks(model, torch.randn(16, 4))
        >>> [(leak.module, leak.layer, leak.modes) for leak in found]
        [('1', 'BatchNorm1d', ('train',))]

    References:
        Strength of BatchNorm as 2/n: derived, and measured to 12 % for n = 2 to 128.
    """
    if loss is not None and call is not None:
        raise SettingError("loss and call are two ways to run the model", fix="one")
    if any(is_lazy(parameter) for parameter in model.parameters()):
        raise SettingError(
            "a lazy layer has no weights yet",
            why="every pass begins from the same weights",
            fix="call the model once on a batch before",
        )
    count = _examples(batch)
    asked = [list(between_examples(count))]
    if time_axis is not None:
        asked.append(list(from_a_step_on(time_axis, _steps(batch, time_axis))))
    if documents is not None:
        asked.append(_packed(documents, batch))
    search = LeakSearch(
        model,
        batch,
        loss or call or _called,
        around=LOSS if loss else CALL if call else "",
        is_loss=loss is not None,
        kept=documents,
    )
    rank_search = RankSearch(search, count) if ranks else None
    frozen = [p for p in model.parameters() if not p.requires_grad]
    modes: list[Mode] = ["train", "eval"]
    with preserved_rng(), as_written():
        torch.manual_seed(SEED)
        with nothing_zero(model):
            for mode in modes:
                with untouched(model, (), frozen):
                    _set_mode(model, mode)
                    if rank_search is None:
                        search.look(mode, asked)
                    else:
                        rank_search.look(mode)
    return Leaks(
        items=tuple(search.found.values()),
        examples=count,
        passes=search.passes,
        repeatable=search.repeatable,
        set_aside=tuple(search.reasons),
    )


def _set_mode(model: nn.Module, mode: Mode) -> None:
    """To eval, or to training; one that trains keeps layers that do not."""
    if mode == "eval":
        model.eval()
    elif not model.training:
        model.train()


def _called(model: nn.Module, batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(batch[0] if isinstance(batch, (tuple, list)) else batch)


def _examples(batch: Any) -> int:
    """How many examples: what the first axes of all tensors agree on."""
    for leaf in leaves(batch):
        if not isinstance(leaf, (Tensor, bool, int, float, type(None))):
            raise SettingError(
                f"the batch holds a {type(leaf).__name__}, which cannot be changed",
                why="outputs are compared with those of a batch of other numbers",
                fix="give tensors only; what is no example belongs in call=",
            )
    sizes = sorted({t.size(0) for t in tensors(batch) if t.dim()})
    if len(sizes) != 1:
        raise SettingError(
            "the tensors of the batch do not agree on the number of examples",
            seen=f"first axes {sizes}" if sizes else "no tensor with an axis",
            why="examples are numbered along the first axis",
            fix="put the examples first; what is no example belongs in call=",
        )
    if sizes[0] < 2:
        raise SettingError(
            f"a batch of {sizes[0]} has no two examples",
            why="one is changed and the other watched",
            fix="give a batch of two examples or more",
        )
    return sizes[0]


def _steps(batch: Any, axis: int) -> int:
    """How many steps: the length of this axis in all tensors that have it."""
    longer = [t for t in tensors(batch) if t.dim() > axis]
    sizes = sorted({t.size(axis) for t in longer})
    if axis < 1 or len(sizes) != 1 or sizes[0] < 2:
        raise SettingError(
            f"time_axis={axis} has no steps to tell apart",
            seen=f"tensors of shapes {[tuple(t.shape) for t in tensors(batch)]}",
            why="later steps are changed and earlier ones watched",
            fix="name the axis of two steps or more, counted from 0, examples first",
        )
    return sizes[0]


def _packed(documents: Tensor, batch: Any) -> list[Question]:
    """The questions between documents, of a batch that has their steps."""
    rows = isinstance(documents, Tensor) and documents.dim() == 2
    questions = list(between_documents(documents)) if rows else []
    if questions and any(questions[0].concerns(t) for t in tensors(batch)):
        return questions
    raise SettingError(
        "documents does not number the steps of the batch",
        seen=f"shape {tuple(documents.shape)}, {len(documents.unique())} number(s)"
        if isinstance(documents, Tensor)
        else f"a {type(documents).__name__}, no tensor",
        why="one document of a row is changed and the others watched",
        fix="give a whole number for every (example, step), two documents in a row",
    )
