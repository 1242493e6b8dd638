"""Where examples touch each other: leaks, and losses that compare them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from rightbatch.core.errors import SettingError
from rightbatch.core.findings import Finding
from rightbatch.core.trees import tensors
from rightbatch.core.units import show_number
from rightbatch.coupling.leak import Leak, Leaks, Mode
from rightbatch.coupling.perturbation import Across
from rightbatch.lint.comparisons import (
    drawn_by,
    in_pieces,
    leaking_ahead,
    leaking_ranks,
    on_ranks,
)
from rightbatch.lint.probe import Probe, Rule, Searched

TURNED = 1 - 1e-3  # cosine below which a gradient has another direction [assumed]
MET = 0.01  # copies of an example in a batch, above which we say so [assumed]
READ, READ_TENSORS = 512, 8192  # examples looked at for copies [assumed: a second]
OUTSIDE = ("(loss)", "(call)", "(outside the model)")


def leak_between_examples(probe: Probe) -> Finding | None:
    """What the model makes of an example does not depend on the others beside it.

    Attention over the batch (``batch_first`` left out), a recurrent net that takes the
    batch for time, a softmax over axis 0, a scale by the batch's largest value: such a
    model learns from its neighbours, and is another one in every batch it meets, that
    of one at inference too. Nothing raises: it trains, and often to a lower loss.
    Half of eight examples are changed at fixed shapes and random state, and the other
    half's outputs must keep every bit, in training and in eval mode.

    Fix: at the module named; mostly an axis, or ``batch_first=True``.

    A model that makes the table of similarities itself (CLIP with its loss inside) is
    reported too, and is right.

    Not seen: BatchNorm that keeps running statistics (RB109), a second leak behind the
    first, batches that cannot be changed, such as of texts.
    """
    if isinstance(probe.leaks, SettingError):  # texts, and nobody asked
        return None
    leak = _first(probe.leaks, "RB306", "examples")
    if not isinstance(leak, Leak):
        return leak
    share = leak.strength / (1 + leak.strength) if leak.strength < np.inf else 1.0
    return Finding(
        code="RB306",
        severity="warning",
        what=f"{_place(leak)} mixes the examples of a batch",
        seen=f"the others' share of an output's movement: {share:.0%}, in "
        f"{' and '.join(leak.modes)} mode",
        why="the model learns from its neighbours in the batch, which inference does "
        "not have; another batch size is another model",
        fix="look for the axis of examples there: batch_first=True, dim=-1, or the "
        "statistics of one example",
    )


def leak_from_the_future(probe: Probe) -> Finding | None:
    """No output depends on later steps.

    A missing causal mask, padding on both sides of a convolution, a bidirectional net,
    or a normalisation over time shows a model what it is to predict: the loss falls
    far, and generation is poor. GroupNorm over time looks ahead in eval mode too,
    BatchNorm1d in training only, so that a test in eval mode does not see it. Steps
    from t on are changed, and outputs before t must keep every bit.

    Fix: a causal mask, padding on the left only, LayerNorm over the features.

    Not seen: anything, unless ``time_axis`` is given or the batch holds whole numbers
    and the same ones a step later as targets; what is cut off inside the loss.
    """
    axis = probe.setup.time_axis
    axis = _shifted(probe) if axis is None else axis
    if axis is None:
        return None
    leak = _first(leaking_ahead(probe, axis), "RB307", "time")
    if not isinstance(leak, Leak) or leak.lookahead is None:
        return leak if isinstance(leak, Finding) else None
    ahead = "all" if np.isinf(leak.lookahead) else f"the next {leak.lookahead:.0f}"
    return Finding(
        code="RB307",
        severity="error",
        what=f"{_place(leak)} looks ahead in time",
        seen=f"outputs depend on {ahead} of the later steps along axis {axis}, in "
        f"{' and '.join(leak.modes)} mode",
        why="the model sees what it is to predict: the loss falls, and it cannot "
        "generate",
        fix="a causal mask, padding on the left only, or LayerNorm over features",
    )


def _shifted(probe: Probe) -> int | None:
    """The axis along which targets are the inputs one step later, if any are."""
    fields = [t for t in tensors(probe.batch(probe.few)) if t.dim() == 2]
    whole = [t for t in fields if not t.is_floating_point() and t.shape[1] > 2]
    for inputs in whole:
        for targets in whole:
            ahead = inputs.shape == targets.shape and not torch.equal(inputs, targets)
            if ahead and torch.equal(inputs[:, 1:], targets[:, :-1]):
                return 1
    return None


def leak_between_ranks(probe: Probe) -> Finding | None:
    """Outputs on one rank depend neither on other ranks' examples nor on the rank.

    A shared queue, a gather in the forward pass, dropout or weights that are seeded by
    rank: the ranks then train different models, or one that inference does not have.
    Under torchrun all ranks ask together; else two processes of this machine do.

    Fix: at the module named; what has to differ by rank belongs in the data.

    Not seen: BatchNorm (RB304), losses that gather (RB309).
    """
    if probe.setup.ranks < 2:
        return None
    leak = _first(leaking_ranks(probe), "RB308", "ranks", "placement")
    if not isinstance(leak, Leak):
        return leak
    beside = leak.across == "ranks"
    return Finding(
        code="RB308",
        severity="warning",
        what=f"{_place(leak)} depends on "
        f"{'other ranks' if beside else 'the rank it runs on'}",
        seen=f"2 ranks, {'examples of one changed' if beside else 'shards exchanged'}: "
        f"outputs move, in {' and '.join(leak.modes)} mode",
        why="each rank trains another function, and evaluation is a third",
        fix="the same weights and state on every rank; what differs belongs in the "
        "data",
    )


def _first(found: Searched, code: str, *kinds: Across) -> Leak | Finding | None:
    """The first leak of these kinds inside the model, in the modes of all of its kind.

    A note, where nothing could be searched.
    """
    if not isinstance(found, Leaks):
        what = f"not checked: {found.what}"
        return replace(Finding.of(code, found), severity="note", what=what)
    for across in kinds:
        inside = [x for x in found if x.across == across and x.module not in OUTSIDE]
        if inside:
            seen = {mode for leak in inside for mode in leak.modes}
            modes = tuple(m for m in get_args(Mode) if m in seen)
            return replace(inside[0], modes=modes)
    return None


def _place(leak: Leak) -> str:
    return f"{leak.module} ({leak.layer})" if leak.module else leak.layer


def contrastive_loss_in_parts(probe: Probe) -> Finding | None:
    """A loss over the whole batch has the same gradient on its parts.

    Micro-batches that are accumulated hold their own negatives only: 4 of 16 are not
    one of 64. On ranks it depends on how features are gathered: without a gradient
    through the gather DDP's average is 1/n of it (open_clip's defaults: 0.25 at four
    ranks, and its temperature 1.00), without a gather the direction is another (cosine
    0.90) [measured]. Adam hides a factor; clipping, weight decay and a trained
    temperature do not. Both gradients are made, the ranks' in processes here.

    Fix: ``rb.coupling.info_nce``, which gathers; ``rb.coupling.cached_step`` in the
    place of accumulation.

    Not seen: ranks under torchrun, on a machine that cannot fork, once a GPU was used;
    models and losses that draw random numbers beside dropout layers.
    """
    if not probe.loss_couples:
        return None
    cut = in_pieces(probe)
    if cut is not None:
        passes, size, gradient = cut
        return Finding(
            code="RB309",
            severity="warning",
            what="the loss is no mean over examples: "
            f"{passes} x {size} accumulated is another objective",
            seen=f"the gradient of {passes} x {size} accumulated differs by "
            f"{gradient.share:.2g} of its norm from that of the batch at once",
            why="what examples of different parts do to each other is left out",
            fix="rb.coupling.cached_step, which has the gradient of the whole batch; "
            "or a loss that is (sum, count)",
        )
    if probe.setup.ranks < 2 or (measured := on_ranks(probe)) is None:
        return None
    ranks, gradient = measured
    turned = gradient.cosine < TURNED
    return Finding(
        code="RB309",
        severity="warning",
        what="the loss on ranks has another gradient than on one process",
        seen=f"{ranks} ranks, averaged as DDP does: {gradient.factor:.3g} times as "
        f"long, cosine {gradient.cosine:.3f}",
        why="what one rank's examples owe to another's is left out"
        if turned
        else "no gradient, or too much of it, comes back through the gather; clipping, "
        "weight decay and a trained temperature feel the factor",
        fix="rb.coupling.info_nce or siglip, which gather with the right gradient; or "
        "a loss that is (sum, count)",
    )


def duplicates_among_negatives(probe: Probe) -> Finding | None:
    """A contrastive loss meets hardly any example twice in one batch.

    The copy of an example is a negative of its own positive: what should be pulled
    together is pushed apart. The expected number of equal pairs grows with the square
    of the batch: with 70,000 documents and batches of 32,000 it was 7,700 pairs
    (sentence-transformers issue 3189). Equal rows are counted in each field of the
    batches that the loader draws, or among random examples of the data.

    Fix: ``rb.data.Distinct``, an order in which no two of a batch share a key.

    Not seen: copies that random augmentation makes different, texts that are no
    tensors, fields of one number per example (labels), losses that mask them.
    """
    if not probe.contrastive:
        return None
    split = probe.setup.split(probe.job)
    size = split.micro_batch * split.ranks
    rate, compared = _equal_pairs(probe, size)
    met = rate * (size - 1)
    if met < MET:
        return None
    return Finding(
        code="RB310",
        severity="warning",
        what=f"{met:.2g} copies of an example are among its negatives",
        seen=f"{show_number(met * size / 2)} equal pairs in a batch of {size}, from "
        f"{compared} pairs compared",
        why="the loss pushes an example away from its own copy",
        fix="rb.BatchStream(..., order=rb.data.Distinct(keys)); or mask them in the "
        "loss",
    )


def _equal_pairs(probe: Probe, size: int) -> tuple[float, int]:
    """Share of pairs of the same batch that are equal, and how many were compared."""
    job, loader = probe.job, probe.setup.loader
    most = READ_TENSORS if isinstance(job.data, tuple) else READ
    groups = [torch.randperm(job.length)[: max(most, size)].numpy()]
    draws = None if loader is None else drawn_by(loader, most)
    if draws is not None and draws.length == job.length:
        groups = draws.steps
    counted = [_copies(job.batch(torch.as_tensor(g), probe.device)) for g in groups]
    compared = sum(len(g) * (len(g) - 1) // 2 for g in groups)
    fields = [sum(pairs) for pairs in zip(*counted, strict=True)]
    return max(fields, default=0) / max(compared, 1), compared


def _copies(batch: Any) -> list[int]:
    """Pairs of equal rows in each field of a batch; none where it is no input."""
    return [_equal_rows(t) if _may_be_input(t) else 0 for t in tensors(batch)]


def _may_be_input(field: Tensor) -> bool:
    """Several numbers for each example, which are no mask."""
    if field.dim() < 2 or field.layout != torch.strided or field[0].numel() < 2:
        return False
    return bool(((field != 0) & (field != 1)).any())


def _equal_rows(field: Tensor) -> int:
    rows = field.detach().cpu().flatten(1).contiguous().view(torch.uint8).numpy()
    _, counts = np.unique(rows, axis=0, return_counts=True)
    constant = len(counts) == 1  # the same for all, such as positions
    return 0 if constant else int((counts * (counts - 1) // 2).sum())


TOUCHING_RULES: dict[str, Rule] = {
    "RB306": leak_between_examples,
    "RB307": leak_from_the_future,
    "RB308": leak_between_ranks,
    "RB309": contrastive_loss_in_parts,
    "RB310": duplicates_among_negatives,
}
