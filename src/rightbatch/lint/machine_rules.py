"""Data and machine: what a batch can hold, and what a step of it costs."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
)

from rightbatch.core.errors import SettingError
from rightbatch.core.findings import Finding
from rightbatch.core.units import show_number, show_seconds
from rightbatch.fit.critical_batch import relative_steps
from rightbatch.fit.stairs import stair
from rightbatch.lint.comparisons import class_losses
from rightbatch.lint.probe import Probe, Rule
from rightbatch.plan.caveats import STAIR
from rightbatch.plan.laws import Laws
from rightbatch.plan.options import memory_limit
from rightbatch.schedules.run_checks import check_schedule

# A class is rare where it has less than a quarter of an even share, and absent where
# most batches are without it. Of a hundred even classes most are absent from a small
# batch, and that is no fault. [assumed]
RARE, ABSENT = 0.25, 0.5
EVEN = (RandomSampler, SequentialSampler, DistributedSampler)  # draw all as often
MOST_CLASSES, LEAST_EACH = 1000, 20  # of what is taken for labels [assumed]
FREE = 1.15  # twice the examples in so much of the time are as good as free [assumed]
HALF = 0.55  # half the examples in so much of the time cost nothing more [assumed]
SAVED = 0.9  # of the time to the target, at the most, for a smaller batch [assumed]
FAR = 4.0  # times the critical batch: four fifths of the examples are saved [assumed]


def rare_class_absent(probe: Probe) -> Finding | None:
    """Most batches hold an example of every class that is rare in the data.

    A class with a share p of the data is absent from a batch of B with probability
    (1 - p)^B: at one in a thousand, from 37 % of the batches of 1,000 [derived]. Their
    gradients push its logit down and nothing pushes it up; then one batch holds it and
    pushes hard. The mean is right, its noise is not, and BatchNorm, hard-negative
    mining and losses of pairs see no such example at all.

    Fix: draw by class: ``rb.data.Strata(labels)`` puts every class into every batch,
    with the weights that leave the mean what it is; or take a larger batch.

    Labels are ``targets`` or ``labels`` of the data set, or else its only tensor of one
    integer for each example, from 0 on. Reported is a class with less than a quarter of
    an even share that is absent from more than half of the batches.

    Not seen: losses that call none of torch's cross-entropies; a loader with a sampler
    of its own, which is left to `rb.audit`.
    """
    labels = _labels(_whole_data(probe))
    if labels is None or not _drawn_evenly(probe.setup.loader):
        return None
    counts = torch.bincount(labels)
    kinds = int((counts > 0).sum())
    count = int(counts[counts > 0].min())
    share, size = count / len(labels), probe.setup.split(probe.job).batch_size
    absent = (1 - share) ** size
    if kinds < 2 or share > RARE / kinds or absent <= ABSENT:
        return None
    if not class_losses(probe):  # they may be counts
        return None
    enough = math.ceil(math.log(ABSENT) / math.log1p(-share))
    which = int((counts == count).nonzero()[0])
    return Finding(
        code="RB601",
        severity="note",
        what=f"class {which} is absent from {absent:.0%} of the batches",
        seen=f"{count} of {len(labels):,} examples, {share:.3%}: (1 - p)^B = "
        f"{absent:.2f} at B = {size}",
        why="most steps push it down and a few push it up: its noise is many times "
        "that of the others",
        fix="rb.data.Strata(labels), with its weights in the loss; or batches of "
        f"{enough:,} or more; nothing, if it matters no more than its share",
    )


def batch_beyond_data(probe: Probe) -> Finding | None:
    """No batch of the run is larger than the data set.

    Such a batch would hold examples twice, so it is no larger than it was: its noise
    stays, and the rate that was raised for it is too high. Ranks multiply the batch,
    and so does a ramp: each is looked at, over the whole run.

    Fix: a smaller batch or a schedule that ends at the data's size; with many ranks,
    fewer.

    It needs the whole data set: a job, or a loop's ``loader``.
    """
    data = _whole_data(probe)
    length = probe.job.length if data is probe.job.data else _length(data)
    if length is None:
        return None
    split, schedule = probe.setup.split(probe.job), probe.setup.schedule
    if schedule is not None:
        end = probe.job.run_examples or math.inf
        try:
            check_schedule(schedule, length=length, examples=end, largest=None)
        except SettingError as error:
            fix = f"a schedule that stays at {length:,} or below"
            return replace(Finding.of("RB602", error), fix=fix)
        return None
    if split.batch_size <= max(length, probe.job.batch_size):
        return None
    return Finding(
        code="RB602",
        severity="error",
        what=f"a batch of {split.batch_size:,} exceeds the data set",
        seen=f"{length:,} examples; {split}",
        why="a batch would hold the same example twice",
        fix=f"passes that make {length:,} or less",
    )


def past_a_hardware_step(probe: Probe) -> Finding | None:
    """The micro-batch does not lie just past a step of the hardware.

    Kernels work in tiles and devices in waves: one example past a full one pays for
    another. A multiple of the size below takes less time for almost as many examples;
    how much, `tune` has measured here (16 to 32 examples are the first such step on
    most processors).

    Fix: take the multiple, and more passes where the batch is to stay.

    It needs a run folder, in which one size past a power of two was timed.
    """
    if probe.setup.measurements is None:
        return None
    step, micro = stair(probe.setup.measurements.times), _micro_batch(probe)
    if step is None or step[1].low <= STAIR:
        return None
    edge, ratio = step
    over = micro % edge
    if micro < edge or not 0 < over < edge / 2:
        return None
    return Finding(
        code="RB603",
        severity="warning",
        what=f"a micro-batch of {micro} lies just past a step of the hardware",
        seen=f"{edge + 1} examples take {ratio} the time of {edge}",
        why="the last tile or wave is nearly empty, and costs as much as a full one",
        fix=f"a micro-batch of {micro - over}, or of {micro - over + edge}",
    )


def launch_bound(probe: Probe) -> Finding | None:
    """Twice the micro-batch takes clearly more time: the machine is at work.

    Where it does not, a step's time is what it takes to start its kernels, and more
    examples are free: the same batch in half as many passes, or a larger batch, which
    saves steps as long as it lies below the critical batch. On small models a step of
    64 examples often takes as long as one of 8.

    Fix: a larger micro-batch with fewer passes; or a larger batch with the rate that
    `rb.scale_hyperparameters` gives it; or CUDA graphs and ``torch.compile``.

    It needs a run folder, in which twice the micro-batch was timed; it is silent where
    examples touch (BatchNorm, contrastive losses), and where the batch surely lies
    beyond the critical one and is made in one pass.
    """
    laws, split, micro = probe.laws, probe.setup.split(probe.job), _micro_batch(probe)
    if laws is None or laws.coupled or 2 * micro > _largest(probe, laws):
        return None
    ratio = laws.time.time_ratio(2 * micro, 1, micro, 1)
    useless = laws.measured and split.batch_size >= _critical(laws)[1]
    if ratio.high > FREE or (useless and split.accumulation == 1):
        return None
    fix = f"a batch of {2 * split.batch_size}, with its rate"
    if split.accumulation > 1:
        fix = f"a micro-batch of {2 * split.micro_batch} and half as many passes"
    return Finding(
        code="RB604",
        severity="note",
        what="twice the micro-batch takes hardly longer: a step's time is overhead",
        seen=f"{2 * micro} examples at once: {ratio} the time of {micro}, which is "
        f"{show_seconds(laws.time.seconds(micro))}",
        why="examples are free until the machine is at work",
        fix=fix,
    )


def saturated(probe: Probe) -> Finding | None:
    """Half the batch would not reach the target sooner.

    Once the machine is saturated half the batch takes half the time, so that size costs
    no throughput; and near the critical batch half of it needs fewer than twice as many
    steps: (1 + 2C/B) / (1 + C/B), a factor of 1.5 at B = C (McCandlish et al. 2018,
    arXiv:1812.06162), so three quarters of the time. The memory it leaves is free.

    Fix: half the batch, with the rate that `rb.scale_hyperparameters` gives it; `tune`
    says which batch is best and proves it.

    It needs a run folder with the gradient's noise; reported is what surely saves a
    tenth, where examples do not touch.
    """
    laws, split, micro = probe.laws, probe.setup.split(probe.job), _micro_batch(probe)
    if laws is None or laws.coupled or not laws.measured or split.batch_size % 2:
        return None
    passes = split.accumulation
    half = (micro, passes // 2) if passes % 2 == 0 else (micro // 2, passes)
    if half[0] < laws.time.smallest or micro > laws.time.largest:
        return None
    ratio, critical = laws.time.time_ratio(*half, micro, passes), _critical(laws)[1]
    steps = relative_steps(critical, split.batch_size / 2, split.batch_size)
    if ratio.high > HALF or ratio.high * steps > SAVED:
        return None
    return Finding(
        code="RB605",
        severity="note",
        what=f"half the batch of {split.batch_size} takes half the time, and less than "
        "twice the steps",
        seen=f"a step takes {ratio} the time; the critical batch is "
        f"{laws.critical.critical_batch}: at most {steps:.2f} x the steps",
        why="the machine is saturated: size buys no throughput, and costs examples",
        fix=f"a batch of {split.batch_size // 2}, with the rate of "
        "rb.scale_hyperparameters; `rightbatch plan` says which is best",
    )


def far_from_critical_batch(probe: Probe) -> Finding | None:
    """The batch lies within a factor of 4 of the critical batch.

    At the critical batch C a run takes twice the least number of steps and twice the
    least number of examples (McCandlish et al. 2018, arXiv:1812.06162). At 4 C it takes
    2.5 times the examples of C for 0.63 of its steps; at C/4 it takes 2.5 times the
    steps for 0.63 of the examples: ranks or a larger batch would help almost in
    proportion.

    Fix: another batch, with its rate; what is best between the two ends the machine
    decides: `rightbatch plan`.

    It needs a run folder with the gradient's noise or a race; reported is only where
    the whole interval of C lies beyond the factor. C grows along a run: early
    measurements make a batch look too large.
    """
    laws, size = probe.laws, probe.setup.split(probe.job).batch_size
    if laws is None or laws.coupled == "loss" or not laws.measured:
        return None
    low, high = _critical(laws)
    shown = f"B = {size:,}, critical batch {laws.critical.critical_batch}"
    if size > FAR * high:
        return Finding(
            code="RB606",
            severity="warning",
            what=f"the batch of {size:,} lies far beyond the critical batch",
            seen=f"{shown}: {(size + high) / (2 * high):.1f} x the examples of a run "
            f"at {show_number(high)}, or more",
            why="most examples of a step say what the others have said",
            fix=f"a batch of {show_number(high)} or less, with its rate",
        )
    if size < low / FAR:
        return Finding(
            code="RB606",
            severity="note",
            what=f"the batch of {size:,} lies far below the critical batch",
            seen=f"{shown}: twice the batch takes "
            f"{relative_steps(low, 2 * size, size):.2f} x the steps, or less",
            why="steps are mostly noise: ranks, or a larger batch where its step costs "
            "less than twice as much, save time almost in proportion",
            fix=f"a batch of up to {show_number(low)}, with its rate; nothing, where "
            "examples are what is dear",
        )
    return None


MACHINE_RULES: dict[str, Rule] = {
    "RB601": rare_class_absent,
    "RB602": batch_beyond_data,
    "RB603": past_a_hardware_step,
    "RB604": launch_bound,
    "RB605": saturated,
    "RB606": far_from_critical_batch,
}


def _whole_data(probe: Probe) -> Any:
    """The data set: the loader's, or the job's; None: not known."""
    if probe.setup.loader is not None:
        return getattr(probe.setup.loader, "dataset", None)
    return None if probe.setup.sample else probe.job.data


def _length(data: Any) -> int | None:
    """How many examples a data set has; None: it does not say."""
    try:
        return len(data)
    except (TypeError, NotImplementedError):  # a stream; an abstract ``__len__``
        return None


def _labels(data: Any) -> Int[Tensor, " examples"] | None:
    """One class for each example, as integers from 0 on; None: there are none."""
    given = getattr(data, "targets", getattr(data, "labels", None))
    tensors = data if isinstance(data, tuple) else getattr(data, "tensors", ())
    flat = [t for t in tensors if t.ndim == 1 and _is_integer(t)]
    if given is None and len(flat) == 1:
        given = flat[0]
    try:
        labels = None if given is None else torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError):  # words, several for an example
        return None
    if labels is None or labels.ndim != 1 or not _is_integer(labels) or not len(labels):
        return None
    labels = labels.cpu().long()
    most = min(MOST_CLASSES, len(labels) // LEAST_EACH)
    if labels.min() != 0 or labels.max() >= most:
        return None
    return labels


def _is_integer(tensor: Tensor) -> bool:
    real = tensor.is_floating_point() or tensor.is_complex()
    return not real and tensor.dtype != torch.bool


def _drawn_evenly(loader: Any) -> bool:
    """Whether a loader draws every example as often, by torch's own samplers."""
    if loader is None:
        return True
    batches = getattr(loader, "batch_sampler", None)
    plain = isinstance(getattr(loader, "sampler", None), EVEN)
    return plain and (batches is None or type(batches) is BatchSampler)


def _micro_batch(probe: Probe) -> int:
    """Examples at once over as many ranks as were measured."""
    known = probe.setup.measurements
    ranks = 1 if known is None else known.machine.world_size
    return probe.setup.split(probe.job).micro_batch * ranks


def _largest(probe: Probe, laws: Laws) -> float:
    """The largest micro-batch that was timed and fits in memory."""
    known = probe.setup.measurements
    if known is None or laws.memory is None:
        return laws.time.largest
    return min(laws.time.largest, laws.memory.largest(memory_limit(known, None)))


def _critical(laws: Laws) -> tuple[float, float]:
    """The critical batch, from and to."""
    critical = laws.critical.critical_batch
    return critical.low, critical.high
