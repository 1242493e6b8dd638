"""What would make measurements of a job wrong; `rightbatch.tuning` runs these too.

A rule that raises a `JobError` has found an error.
"""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor, nn

from rightbatch.core.errors import JobError, RightbatchError
from rightbatch.core.findings import Finding
from rightbatch.core.trees import tensors
from rightbatch.coupling.probe import LEAST_EXAMPLES, Coupling
from rightbatch.job.loss import no_pair
from rightbatch.job.optimizers import rate_in
from rightbatch.job.several_optimizers import members_of
from rightbatch.lint.probe import BACKWARD, PassTooLongError, Probe, Rule
from rightbatch.schedules.job_rate import rate_of

SUM_TOLERANCE = 0.02  # how far from 2 the ratio of a doubled batch may be [assumed]
EVALUATED = 64  # examples that an evaluation looks at, at the least [assumed]


def enough_data(probe: Probe) -> Finding | None:
    """The data set holds at least one batch.

    A batch larger than the data set would hold examples twice: its gradient is less
    noisy than that of so many different examples, and each epoch has no whole step.

    Fix: a batch size of at most ``len(data)``. With ``drop_last`` such a loader makes
    no batch at all; that is seen by an audit of the loader (RB2xx).
    """
    job = probe.job
    if job.length == 0:
        raise JobError("the data set is empty", seen="len(data) = 0")
    if job.length < job.batch_size:
        raise JobError(
            "the data set is smaller than one batch",
            seen=f"{job.length} examples, batch_size {job.batch_size}",
            why="a batch would hold the same example twice",
            fix=f"batch_size={job.length} or less",
        )
    return None


def trainable(probe: Probe) -> Finding | None:
    """Model, optimizer and rate can be made, and something can be trained.

    Every measurement and every candidate of a race begins from a model of its own, so
    ``model()`` has to build one each time it is called. The optimizer has to hold the
    parameters of that model, with a learning rate above zero in its first group: all
    rates are raced by one factor on the first. A ``rate`` is read too, since a schedule
    that cannot be followed makes any run another one. Parameters that are trained but
    not in the optimizer are a warning: their noise would be measured although no step
    moves them.

    Fix: build the network inside ``model()``, or pass the module itself; use the
    parameters that ``optimizer(params)`` is given; make the scheduler in ``rate``, not
    inside ``optimizer``.
    """
    parameters = {id(p) for p in probe.model.parameters() if p.requires_grad}
    held = {id(p) for g in probe.optimizer.param_groups for p in g["params"]}
    again = {p.data_ptr() for p in probe.job.make_model().parameters()}
    if again & {p.data_ptr() for p in probe.model.parameters()} - {0}:
        raise JobError(
            "model() returns the same network every time",
            seen="two calls share parameters",
            why="every measurement would train the network of the one before",
            fix="build the network inside model(), or pass the module itself",
        )
    if not held & parameters:
        raise JobError(
            "the optimizer holds no parameter of the model",
            seen=f"{len(parameters)} trainable, {len(held)} in the optimizer, 0 shared",
            why="its steps would change nothing",
            fix="optimizer=lambda params: SGD(params, ...) using the params given; of "
            "a loop, the optimizer over model.parameters()",
        )
    for number, group in enumerate(probe.optimizer.param_groups):
        lr = rate_in(group)
        # Zero keeps a group as it is; the first one's rate stands for all.
        if lr is None or not 0 <= lr < math.inf or (lr == 0 and number == 0):
            which = f"param group {number}" if number else "first param group"
            raise JobError(
                f"the {which} has no learning rate above zero",
                seen=f"lr = {group.get('lr')}",
                why="all rates are read and changed by the factor of the first",
                fix="a rate above zero, or requires_grad_(False) on what stays",
            )
    rate_of(probe.job)
    missing = len(parameters - held)
    if missing:
        return Finding(
            code="RB102",
            severity="warning",
            what=f"{missing} trainable parameters are not in the optimizer",
            seen=f"{len(parameters)} trainable, {len(held & parameters)} in it",
            why="noise is measured over the parameters that are trained",
            fix="requires_grad_(False) on what is meant to stay",
        )
    return None


def one_step_optimizer(probe: Probe) -> Finding | None:
    """The optimizer makes one update per gradient.

    LBFGS calls the loss several times for one step. Which batch such a step has cannot
    be said, so neither the noise of its gradient nor the steps to a target follow the
    laws that a batch is chosen by.

    Fix: SGD, Adam or any other optimizer that takes one gradient for a step.
    """
    if any(isinstance(o, torch.optim.LBFGS) for o in members_of(probe.optimizer)):
        raise JobError(
            "LBFGS evaluates the loss several times per step",
            why="one step has no single batch, so the laws do not apply",
            fix="SGD, Adam or another optimizer of one gradient per step",
        )
    return None


def scalar_loss(probe: Probe) -> Finding | None:
    """The loss of today's batch is one finite number.

    It is a mean over the batch, or a pair ``(sum, count)``. A vector leaves open how
    its entries are averaged; NaN or infinity at the first weights leaves nothing to
    measure; a count that is not positive divides by nothing. Of a pair it is checked,
    at two sizes of batch, that neither of its values is a mean.

    Fix: ``loss.mean()``, or ``(loss.sum(), number of terms)``; for NaN look for
    ``log(0)``, divisions by zero and bad examples. What becomes NaN only later in the
    run is not seen here; `train` stops at it.
    """
    today = probe.job.batch_size
    for size in sorted({probe.few, today}):
        if size > probe.few and not probe.affords(size):
            break  # a few examples have shown that it works
        first, count = probe.first_loss(size)
        if not math.isfinite(first):
            bad = not all(x.isfinite().all() for x in _plain(probe.batch(size)))
            also = ", and the batch itself holds NaN or infinity" if bad else ""
            raise JobError(
                f"the loss of the first batch is {first}",
                seen=f"{size} examples at the initial weights{also}",
                why="nothing can be measured from it",
                fix="look for log(0), division by zero or bad examples in the data",
            )
        if count is not None and not 0 < count < math.inf:
            raise JobError(
                "the loss returned a count that is not positive",
                seen=f"count {count}",
                fix="(sum, count) with the number of terms summed",
            )
        if count is not None and (means := probe.means_in_pair(size)):
            raise no_pair(means)
    return None


def _plain(batch: Any) -> list[Tensor]:
    """Its tensors that are neither sparse nor nested."""
    return [x for x in tensors(batch) if x.layout == torch.strided and not x.is_nested]


def mean_loss(probe: Probe) -> Finding | None:
    """The loss is a mean over examples.

    Each counts by itself. A batch with every example twice has the same mean, and twice
    the sum. A loss that is a sum grows with the batch, and so does its gradient: batch
    x 2 is rate x 2 as well, and no law of batch and rate can be read from it. That is
    an error.

    Where examples touch inside the loss (contrastive losses, a Dice over the batch),
    the batch size is part of what is learned: a warning. It is found by exchanging
    halves of a batch: without touching, the loss of a batch is the sum of what its two
    halves cost, to rounding, here 5e-6 of the loss in float32 [measured]. A mean over
    something else than examples, such as tokens, is a note: pieces of a batch that hold
    unequal numbers of them are weighed unequally.

    Fix: ``loss.mean()``; ``(sum, count)`` for tokens. A loss that needs its batch stays
    as it is, and its batch is not cut into pieces. A coupling below rounding at the
    initial weights is not seen.
    """
    few = probe.few
    once = probe.loss(probe.batch(few), few)
    twice = probe.loss(probe.batch(few, repeats=2), 2 * few)
    ratio = twice / once if once else 1.0
    if abs(ratio - 2) < 2 * SUM_TOLERANCE:
        raise JobError(
            "the loss is a sum over examples, not a mean",
            seen=f"each example twice in the batch: loss x {ratio:.2f} (a mean: 1.00)",
            why="changing the batch would also multiply the learning rate",
            fix="return loss.mean(), or (loss, number of examples)",
        )
    if probe.coupling.by_type and not probe.affords(LEAST_EXAMPLES):
        raise PassTooLongError(LEAST_EXAMPLES * probe.forward_s)
    if probe.coupling.kind == "loss":
        return Finding(
            code="RB105",
            severity="warning",
            what="an example's loss depends on the others in its batch",
            seen=_exchanged(probe.coupling),
            why="the batch size changes what is learned (contrastive losses): another "
            "batch is another objective, and so is one made in pieces",
            fix="a batch made at once, or by rb.coupling.cached_step; nothing, if that "
            "is so",
        )
    if probe.coupling.mean_of_means:
        return Finding(
            code="RB105",
            severity="note",
            what="the loss is a mean over something else than examples",
            seen=_exchanged(probe.coupling),
            why="a batch made in pieces weighs its examples a little otherwise",
            fix="return (sum, count) of what it is a mean over, such as tokens",
        )
    return None


def _exchanged(coupling: Coupling) -> str:
    """What was seen when halves of a batch were exchanged."""
    if coupling.by_type:
        return "layers that normalise over the batch"
    return (
        f"another half of {coupling.examples} examples changes what the first costs "
        f"by {coupling.share:.1g} of the loss"
    )


def repeatable_loss(probe: Probe) -> Finding | None:
    """The same weights, batch and random state give the same loss.

    What a loss draws from a generator of its own (Python's ``random``, a new
    ``numpy.random.default_rng()``) differs between two calls that should agree. The
    difference is counted as gradient noise, so that the noise scale, and the batch with
    it, come out too large; and no run can be repeated.

    Fix: draw random numbers from torch's generator, or in the data set. Differences
    below 1e-5 of the loss are taken for rounding.
    """
    values = []
    few = probe.few
    batch = probe.batch(few)
    for _ in range(3):
        torch.manual_seed(0)
        values.append(probe.loss(batch, few))
    spread = max(values) - min(values)
    if spread <= 1e-5 * max(abs(values[0]), 1e-12):
        return None
    return Finding(
        code="RB106",
        severity="warning",
        what="the loss is not deterministic",
        seen=f"same weights, batch and seed: {min(values):.6g} to {max(values):.6g}",
        why="its own scatter is counted as gradient noise: B comes out too large",
        fix="draw random numbers from torch's generator, or in the data set",
    )


def differentiable(probe: Probe) -> Finding | None:
    """A backward pass gives finite gradients to the parameters.

    Noise and progress are read from gradients. One that is NaN or infinite at the first
    weights, one that reaches no parameter at all, and sparse ones are errors; a
    parameter that none reaches is a note, and is left out of the noise.

    Fix: look for ``sqrt(0)``, ``log(0)`` and overflow where a gradient is not finite;
    ``Embedding(sparse=False)``; let the loss depend on the model that it is given, and
    ``requires_grad_(False)`` for what is meant to stay.
    """
    size = min(probe.job.batch_size, probe.job.length)
    if not probe.affords(BACKWARD * size):
        size = min(probe.few, size)
    probe.differentiate(size)
    named = [(n, p) for n, p in probe.model.named_parameters() if p.requires_grad]
    sparse = [n for n, p in named if p.grad is not None and p.grad.is_sparse]
    if sparse:
        raise JobError(
            "sparse gradients are not supported",
            seen=", ".join(sparse[:3]),
            fix="Embedding(..., sparse=False)",
        )
    bad = [n for n, p in named if p.grad is not None and not p.grad.isfinite().all()]
    if bad:
        raise JobError(
            "the first gradient is not finite",
            seen=f"NaN or infinity in {', '.join(bad[:3])}",
            why="neither noise nor progress can be measured",
            fix="look for sqrt(0), log(0) or overflow in the loss",
        )
    without = [n for n, p in named if p.grad is None]
    if len(without) == len(named):
        given = probe.job.model
        own = given.parameters() if isinstance(given, nn.Module) else ()
        other = any(p.grad is not None for p in own)
        raise JobError(
            "the loss uses another network than the one it is given"
            if other
            else "no parameter received a gradient",
            seen=f"{len(named)} trainable parameters, every .grad is None",
            fix="let the loss depend on the model it is given",
        )
    if without:
        return Finding(
            code="RB107",
            severity="note",
            what=f"{len(without)} trainable parameters receive no gradient",
            seen=", ".join(without[:3]),
            why="they are left out of the noise",
        )
    return None


def every_size(probe: Probe) -> Finding | None:
    """The model runs on one example and on two, not only on today's batch.

    A batch of any size is made of pieces, and the last piece of an epoch may be small.
    A model with a batch size written into ``view`` or ``reshape``, or with BatchNorm on
    one value for each channel, fails there: after hours, where the epoch ends. A loss
    that compares examples is not tried on one.

    Fix: ``x.view(len(x), -1)`` in place of a fixed size; ``drop_last=True`` or a norm
    that needs no other examples. Sizes that fail are left out of the plan.
    """
    failed: list[tuple[int, str]] = []
    for size in (2,) if probe.coupling.kind == "loss" else (1, 2):
        try:
            probe.differentiate(size)
        except RightbatchError as error:
            failed.append((size, (error.seen or error.what).splitlines()[0]))
    if not failed:
        return None
    return Finding(
        code="RB108",
        severity="warning",
        what=f"the model fails at batch size {' and '.join(str(s) for s, _ in failed)}",
        seen=failed[0][1],
        why="such batches are left out; other sizes may fail too",
        fix="no fixed batch size in view() or reshape(); BatchNorm and losses over "
        "pairs need two examples",
    )


def no_normalization(probe: Probe) -> Finding | None:
    """The model looks at each example by itself, in training mode too.

    BatchNorm and its kind make the output of an example depend on the others in its
    pass. How many see each other is then part of the model: other pieces are another
    function, whether accumulated or on ranks. With n values behind each statistic, the
    others' share of an example's gradient is about 2 / n of its own [measured: .55 at
    n = 4, .064 at 32].

    What follows here: the number that see each other today is kept, and larger batches
    are made of such groups, each by itself or several at once. It is found by
    exchanging halves of a batch, so layers of one's own count too.

    Fix: GroupNorm or LayerNorm where that is an option.
    """
    if probe.coupling.kind != "normalization":
        return None
    return Finding(
        code="RB109",
        severity="warning",
        what="the model normalises over the batch",
        seen=_exchanged(probe.coupling),
        why="the function itself depends on how many examples see each other: that "
        "number is kept as it is today, and larger batches are made of such groups",
        fix="GroupNorm or LayerNorm where that is an option",
    )


def target_ahead(probe: Probe) -> Finding | None:
    """The evaluation works, and its target lies ahead of the start.

    Progress is time to the target, as ``evaluate(model)`` sees it. An evaluation that
    is NaN shows none, and a target that the initial weights meet already, mostly a
    ``goal`` the wrong way round, makes every batch look equally good.

    Fix: a finite number, such as the mean loss on held-out data, and a target beyond
    the first value in the direction of ``goal``.
    """
    job = probe.job
    if job.evaluate is None:
        return None
    if not probe.affords(EVALUATED):
        raise PassTooLongError(EVALUATED * probe.forward_s)
    started = time.perf_counter()
    value = job.evaluated(probe.model)  # no rule makes a step
    probe.evaluate_s = time.perf_counter() - started
    if not math.isfinite(value):
        raise JobError(
            f"evaluate(model) returned {value} at the initial weights",
            why="no progress can be read from it",
            fix="return a finite number, such as the mean loss on held-out data",
        )
    if job.met(value):
        other = "max" if job.goal == "min" else "min"
        better = "lower" if job.goal == "min" else "higher"
        raise JobError(
            "the target is already met at the start",
            seen=f"evaluate(model) = {value:.4g}, target {job.target:.4g}, "
            f"{better} is better",
            why="there is nothing to train",
            fix=f"another target, or goal={other!r}",
        )
    return None


JOB_RULES: dict[str, Rule] = {
    "RB101": enough_data,
    "RB102": trainable,
    "RB103": one_step_optimizer,
    "RB104": scalar_loss,
    "RB105": mean_loss,
    "RB106": repeatable_loss,
    "RB107": differentiable,
    "RB108": every_size,
    "RB109": no_normalization,
    "RB110": target_ahead,
}
