"""What an audit finds wrong with a loader, one function each."""

from __future__ import annotations

import numpy as np

from rightbatch.core.estimate import Estimate
from rightbatch.core.findings import Finding
from rightbatch.core.units import show_number

MIXED = 1.2  # noise ratio above which we say so [assumed: 20 % more noise]
BIASED = 5.0  # standard errors by which a label's share may be off [assumed]
PADDED = 0.2  # share of padding above which we say so [assumed]


def mixing(noise: Estimate, size: int, ours: bool) -> Finding | None:
    """Batches are mixed: what lies together does not come together.

    A data set lies sorted more often than not: by class, by day, by source. A loader
    without a shuffle, or with a small buffer, then feeds batches whose examples are
    alike, and the noise of their gradient is up to B times that of random batches. A
    noise scale measured from it is off by the same factor (Meng et al. 2017,
    arXiv:1709.10432, on what insufficient shuffling costs).

    Fix: ``shuffle=True``, a larger buffer, or `rb.BatchStream`. Only the order is
    looked at, never the data: one that lies in random order needs no shuffle.

    Args:
        noise: Of batch means.
        size: Examples in a batch.
        ours: Whether it is a `BatchStream` or `BatchSampler`.
    """
    if noise.low <= MIXED:
        return None
    fix = "shuffle=True, a larger shuffle buffer, or rb.BatchStream"
    if ours:
        fix = "order='shuffled'"
    return Finding(
        code="RB201",
        severity="warning",
        what=f"batches are not mixed: {show_number(noise.value)} x the noise of "
        "random ones",
        seen=f"variance of batch means {noise}, 1 is ideal, {size} no mixing",
        why="what lies together in the data set comes together: gradient noise, "
        "and a noise scale measured from it, are off by up to this factor",
        fix=f"{fix}; nothing, if the data set lies in random order",
    )


def composition(
    names: np.ndarray, share: np.ndarray, seen: np.ndarray, draws: int
) -> Finding | None:
    """Every label is as frequent in batches as in the data.

    Class-balanced samplers change the objective: the loss that is minimised is that of
    another distribution, unless each example's loss is weighed back. It needs
    ``labels=`` and is silent without.

    Fix: `rb.data.Strata`, which gives the weights with the batches; nothing, if another
    distribution is what is meant.

    Args:
        names: Of the labels.
        share: Of each label in the data.
        seen: Of each label in the batches.
        draws: Examples in the batches.
    """
    error = np.sqrt(share * (1 - share) / draws) + 1 / draws
    worst = int(np.abs((seen - share) / error).argmax())
    if abs(seen[worst] - share[worst]) < BIASED * error[worst]:
        return None
    return Finding(
        code="RB202",
        severity="warning",
        what="batches are composed differently from the data set",
        seen=f"label {names[worst]}: {seen[worst]:.3%} of batches, "
        f"{share[worst]:.3%} of the data",
        why="without importance weights another objective is trained; with them "
        "the noise depends on the composition",
        fix="rb.data.Strata gives weights with such batches; nothing, if the loss has "
        "them",
    )


def coverage(lost: int, repeated: int, length: int, batch: int) -> Finding | None:
    """A whole epoch holds every example once.

    ``drop_last`` leaves out the tail of an epoch, ``DistributedSampler`` repeats
    examples until all ranks have equal numbers, sampling with replacement does both: of
    n draws from n examples 37 % never come [derived: 1 / e]. Steps and epochs then no
    longer say how often an example was seen.

    Fix: ``drop_last=False``, ``replacement=False``, or `rb.BatchStream`, whose uneven
    tails need no padding; nothing, if it is meant.

    Args:
        lost: Examples that it leaves out.
        repeated: Draws of an example that it already held.
        length: Examples in the data set.
        batch: Examples in a batch.
    """
    if repeated and lost:
        what = f"an epoch repeats {repeated} and leaves out {lost} of {length} examples"
        why = "as when examples are drawn with replacement, or by weight: some come "
        why += "often, others never"
        fix = "replacement=False; rb.data.Strata, if it is for a rare class"
    elif repeated:
        what = f"an epoch repeats {repeated} of {length} examples"
        why = "DistributedSampler repeats examples to give ranks equal numbers"
        fix = "rb.BatchStream: uneven tails without padding"
    elif lost:
        what = f"an epoch leaves out {lost} of {length} examples"
        why = "drop_last leaves out the tail, others in every epoch if shuffled"
        fix = "drop_last=False, or rb.BatchStream"
        if lost >= batch:
            why = "they never come: the sampler draws from a part of the data set"
            fix = "a sampler over all of it"
    else:
        return None
    return Finding(
        code="RB203",
        severity="note",
        what=what,
        seen=f"{length - lost + repeated} draws, over all ranks",
        why=why,
        fix=f"{fix}; nothing, if it is meant",
    )


def same_order(same_head: int, epoch: int | None) -> Finding | None:
    """No two epochs are alike.

    The same examples that meet in one epoch meet in every other, and what a batch of
    them has in common is not averaged out over epochs. The usual cause is a
    ``DistributedSampler`` without ``set_epoch``, or no shuffle at all.

    Fix: ``sampler.set_epoch(epoch)`` before every epoch. Whether the loop calls it
    cannot be seen from the loader: that is a note.

    Args:
        same_head: Examples with which they begin alike.
        epoch: That the sampler stands in; None: it has no ``set_epoch``.
    """
    if not same_head or epoch:  # the loop calls set_epoch
        return None
    what, fix = "every epoch has the same order", "a sampler that draws anew each epoch"
    if epoch is not None:
        what += ", unless set_epoch is called"
        fix = "sampler.set_epoch(epoch) before every epoch; nothing, if the loop does"
    return Finding(
        code="RB204",
        severity="warning" if epoch is None else "note",
        what=what,
        seen=f"two epochs began with the same {same_head} examples",
        why="the same examples meet in every epoch, and noise is not averaged out",
        fix=fix,
    )


def length_mixing(noise: Estimate, size: int, tokens: bool) -> Finding | None:
    """Batches hold all lengths.

    Sorting by length saves padding and makes batches of like lengths. Where gradients
    depend on length, the steps are noisier than those of random batches, up to the
    factor that is shown. It needs lengths (``lengths=``, or `rb.data.Tokens`).

    Fix: lengths sorted within a window only, or several lengths in the micro-batches of
    one step.

    Args:
        noise: Of batch means of the logarithm of lengths.
        size: Examples in a batch.
        tokens: Whether the order is `Tokens`, whose settings say what is meant.
    """
    if noise.low <= MIXED:
        return None
    return Finding(
        code="RB205",
        severity="note" if tokens else "warning",
        what=f"lengths are not mixed: {show_number(noise.value)} x the noise of "
        "random batches",
        seen=f"variance of the mean log length of batches {noise}, 1 is ideal, {size} "
        "no mixing",
        why="a step holds few lengths; where gradients depend on length, its gradient "
        "is noisier by up to this factor",
        fix="rb.data.Tokens without a window, or more micro-batches in a step",
    )


def padding(share: float, tokens: bool) -> Finding | None:
    """Little of a batch is padding.

    Every example is padded to the longest of its micro-batch. The padding costs time
    and memory, and what is measured for a batch of B examples is paid for tokens that
    teach nothing. It needs lengths (``lengths=``, or `rb.data.Tokens`).

    Fix: ``order=rb.data.Tokens(lengths, budget=...)``, which fills batches by tokens;
    packed, it has no padding.
    """
    if share <= PADDED:
        return None
    fix = "order=rb.data.Tokens(lengths, budget=...)"
    if tokens:
        fix = "a larger batch_size, or packed=True; a window if gradients do not "
        fix += "depend on length"
    return Finding(
        code="RB206",
        severity="note" if tokens else "warning",
        what=f"{share:.0%} of all tokens are padding",
        seen="longest example times number of examples, in every batch",
        why="padding costs time and memory and teaches nothing",
        fix=fix,
    )


LOADER_RULES = {
    "RB201": mixing,
    "RB202": composition,
    "RB203": coverage,
    "RB204": same_order,
    "RB205": length_mixing,
    "RB206": padding,
}
