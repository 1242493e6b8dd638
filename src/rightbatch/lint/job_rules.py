"""What would make measurements of a job wrong; `rightbatch.tuning` runs these too.

A rule that raises a `JobError` has found an error.
"""

from __future__ import annotations

import math
import time

import torch

from rightbatch.core.errors import JobError, RightbatchError
from rightbatch.core.findings import Finding
from rightbatch.coupling.probe import LEAST_EXAMPLES, Coupling
from rightbatch.job.loss import no_pair
from rightbatch.job.optimizers import rate_in
from rightbatch.job.several_optimizers import members_of
from rightbatch.lint.probe import BACKWARD, PassTooLongError, Probe, Rule
from rightbatch.schedules.job_rate import rate_of

SUM_TOLERANCE = 0.02  # how far from 2 the ratio of a doubled batch may be [assumed]
EVALUATED = 64  # examples that an evaluation looks at, at the least [assumed]


def enough_data(probe: Probe) -> Finding | None:
    """The data set holds at least one batch."""
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
    """Model, optimizer and rate can be made, and something can be trained."""
    parameters = {id(p) for p in probe.model.parameters() if p.requires_grad}
    held = {id(p) for g in probe.optimizer.param_groups for p in g["params"]}
    again = {p.data_ptr() for p in probe.job.make_model().parameters()}
    if again & {p.data_ptr() for p in probe.model.parameters()} - {0}:
        raise JobError(
            "model() returns the same network every time",
            seen="two calls share parameters",
            why="every measurement would train the network of the one before",
            fix="build the network inside model(), or pass the module itself: "
            "Job(model=net)",
        )
    if not held & parameters:
        raise JobError(
            "the optimizer holds no parameter of the model",
            seen=f"{len(parameters)} trainable, {len(held)} in the optimizer, 0 shared",
            why="its steps would change nothing",
            fix="Job(optimizer=lambda params: SGD(params, ...)) using the params given",
        )
    for number, group in enumerate(probe.optimizer.param_groups):
        lr = rate_in(group)
        # Zero keeps a group as it is; the first one's rate stands for all.
        if lr is None or not 0 <= lr < math.inf or (lr == 0 and number == 0):
            which = f"param group {number}" if number else "first param group"
            raise JobError(
                f"the {which} has no learning rate above zero",
                seen=f"lr = {group.get('lr')}",
                why="all rates are told and changed by the factor of the first",
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
    """The optimizer makes one update per gradient."""
    if any(isinstance(o, torch.optim.LBFGS) for o in members_of(probe.optimizer)):
        raise JobError(
            "LBFGS evaluates the loss several times per step",
            why="one step has no single batch, so the laws do not apply",
            fix="SGD, Adam or another optimizer of one gradient per step",
        )
    return None


def scalar_loss(probe: Probe) -> Finding | None:
    """The loss of today's batch is one finite number."""
    today = probe.job.batch_size
    for size in sorted({probe.few, today}):
        if size > probe.few and not probe.affords(size):
            break  # a few examples have shown that it works
        first, count = probe.first_loss(size)
        if not math.isfinite(first):
            raise JobError(
                f"the loss of the first batch is {first}",
                seen=f"{size} examples at the initial weights",
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


def mean_loss(probe: Probe) -> Finding | None:
    """A batch with every example twice has the same mean loss, but twice the sum.

    It is the mean over the batch's examples, each by itself.
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
            why="the batch size changes what is learned (contrastive losses), so the "
            "laws compare different objectives, and no batch is made in pieces",
            fix="read the answer as a hint; let the race decide",
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
    """The same weights, batch and random state give the same loss."""
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
    """A backward pass gives finite gradients to the parameters."""
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
        raise JobError(
            "no parameter received a gradient",
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
    """The model runs on one example and on two, not only on today's batch."""
    failed: list[tuple[int, str]] = []
    for size in (1, 2):
        try:
            probe.differentiate(size)
        except RightbatchError as error:  # a loss of ours may refuse a single example
            failed.append((size, (error.seen or error.what).splitlines()[0]))
    if not failed:
        return None
    return Finding(
        code="RB108",
        severity="warning",
        what=f"the model fails at batch size {' and '.join(str(s) for s, _ in failed)}",
        seen=failed[0][1],
        why="such batches are left out; other sizes may fail too",
        fix="no fixed batch size in view() or reshape(); BatchNorm needs two examples",
    )


def no_normalization(probe: Probe) -> Finding | None:
    """The model looks at each example by itself, in training mode too."""
    if probe.coupling.kind != "normalization":
        return None
    return Finding(
        code="RB109",
        severity="warning",
        what="the model normalises over the batch",
        seen=_exchanged(probe.coupling),
        why="the function itself depends on how many examples see each other: that "
        "number is kept as it is today, and larger batches are made in such pieces",
        fix="GroupNorm or LayerNorm where that is an option",
    )


def target_ahead(probe: Probe) -> Finding | None:
    """The evaluation works, and its target lies ahead of the start."""
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
