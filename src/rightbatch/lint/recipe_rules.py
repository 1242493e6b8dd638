"""The recipe: rate, schedule, averages and clipping against the batch that runs."""

from __future__ import annotations

import inspect
import math
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

from rightbatch.core.errors import SettingError
from rightbatch.core.findings import Finding
from rightbatch.core.units import show_number
from rightbatch.job.optimizers import first_rate, kinds_of
from rightbatch.lint.probe import Probe, Rule
from rightbatch.measure.measurements import NoisePoint
from rightbatch.schedules.by_examples import ByExamples
from rightbatch.schedules.job_rate import rate_of
from rightbatch.schedules.run_checks import check_decay_is_met
from rightbatch.schedules.scaling import (
    MOMENTS,
    Scaling,
    scaled_beta2,
    scaled_ema,
    scaling_for,
)
from rightbatch.schedules.schedule import Schedule
from rightbatch.training.gradient import Part

NEAR = 1.1  # within this factor of the rule's, nothing is reported [assumed]
UNFINISHED = 0.1  # of a decay's height may be left at the run's end [assumed]
COSINE_LEFT = 0.8  # of a scheduler's steps: a cosine has a tenth left there [derived]
# Examples in the half-life of a second moment, below which it follows single batches.
# The best half-lives of a measured grid are 6,000 to 18,000 sequences (B of 64 to 512,
# marin-community/marin#4567); common recipes have 900, and work. [assumed]
LEAST_MEMORY = 256
CLIPPED_BATCHES = 3  # whose norms are looked at [assumed]
# Before training gradients are long, and clipping them is what it is for; so much
# longer than the limit they do not fall below it soon. [assumed]
FAR_ABOVE = 10.0


def rate_not_scaled(probe: Probe) -> Finding | None:
    """The batch that runs is the one that the learning rate was chosen for.

    Micro-batch, accumulation and ranks multiply: eight ranks with the recipe of one
    train at eight times the batch. The best rate moves with the batch: under SGD in
    proportion to it while the batch is small (Goyal et al. 2017, arXiv:1706.02677: 256
    to 8,192 examples at 32 times the rate lose nothing), under Adam with its square
    root (Malladi et al. 2022, arXiv:2205.10287). Left as it is, most of what the larger
    batch could save is lost; taken along to a smaller batch, it diverges.

    Fix: ``rb.scale_hyperparameters(optimizer, batch_from=, batch_to=)``, which changes
    betas, epsilon and decoupled weight decay too, or keep the batch by fewer passes.

    It is silent for a schedule of the batch, for an optimizer that the rules do not
    know, and for a loop's own objects, which do not say what batch they are for.
    """
    job, setup = probe.job, probe.setup
    if not setup.recipe or setup.sample or setup.schedule is not None:
        return None
    split = setup.split(job)
    lr, scaling = first_rate(probe.optimizer), _scaling(probe, split.batch_size)
    if lr is None or abs(math.log(scaling.lr)) <= math.log(NEAR):
        return None
    return Finding(
        code="RB501",
        severity="warning",
        what=f"the learning rate was chosen for batches of {job.batch_size}, and "
        f"{split.batch_size} run",
        seen=f"{split}; lr {show_number(lr)}, by the rule {scaling.rule}: "
        f"{show_number(lr * scaling.lr)}",
        why="the best rate moves with the batch",
        fix=f"rb.scale_hyperparameters(optimizer, batch_from={job.batch_size}, "
        f"batch_to={split.batch_size}), or passes that make {job.batch_size}",
    )


def schedule_in_steps(probe: Probe) -> Finding | None:
    """Where the batch changes, the learning-rate scheduler counts examples.

    A scheduler that is stepped once for every update knows nothing of the batch. While
    the batch grows a run makes fewer updates, so the warm-up takes more examples than
    was meant and the decay stops half way (NVIDIA-NeMo/Megatron-Bridge#2609); where the
    batch shrinks the decay is over early (huggingface/transformers#21521). A ramp from
    32 to 256 over half a run leaves a cosine at a fifth of its steps [derived].

    Fix: wrap it: ``rb.schedules.ByExamples(scheduler, batch_size=first)``, stepped by
    the examples of each update; or give the job its ``rate``, which counts examples.

    A scheduler that is stepped once for an epoch should not be passed as
    ``scheduler=``: it would be judged as one that is stepped for every update.
    """
    scheduler, change = probe.setup.scheduler, _change(probe)
    if change is None or scheduler is None or isinstance(scheduler, ByExamples):
        return None
    end, schedule = probe.job.run_examples, change.schedule
    seen = f"{type(scheduler).__name__} counts steps; {schedule}"
    if end is not None and not schedule.live:
        made, meant = _steps(schedule, end), end / change.first
        seen += f"; {show_number(end)} examples are {show_number(made)} steps, not "
        seen += f"{show_number(meant)} of {change.first}"
    return Finding(
        code="RB502",
        severity="warning",
        what="the learning-rate schedule counts steps while the batch changes",
        seen=seen,
        why="warm-up and decay pass by at other numbers of examples than was meant",
        fix=f"rb.schedules.ByExamples(scheduler, batch_size={change.first}), stepped "
        "by the examples of every update",
    )


def decay_never_finishes(probe: Probe) -> Finding | None:
    """The decay of the learning rate has come to its end when the run ends.

    Most of what a decay gains comes at its end, where the noise of the gradient is
    averaged away: a run that stops at half of a cosine keeps half of its rate, and the
    loss of that rate. It happens where ``T_max`` counts passes (micro-batches) and the
    scheduler is stepped once for every update of several of them, where a rate is
    longer than the run, and where the batch grows so far that its last step passes
    over a short decay.

    A warm-up that is longer than the run is reported too.

    Fix: count updates: ``T_max = examples // batch_size``; or give the job a ``rate``
    by examples, such as ``"cosine:9epochs"``.

    Of torch's schedulers it reads ``T_max`` and ``total_steps`` alone; it needs the
    length of the run (``epochs=`` or ``examples=`` of the job).
    """
    job, setup = probe.job, probe.setup
    if job.run_examples is None or not setup.recipe:
        return None
    end, size = job.run_examples, setup.split(job).batch_size
    seen, what = _unfinished_scheduler(probe, end), "the learning rate has decayed"
    rate = None if seen else rate_of(job)
    if rate is not None:
        peak, floor, now = max(rate.factors), rate.factors[-1], rate(end)
        top = rate.examples[rate.factors.index(peak)]
        rising = top > end and now < (1 - UNFINISHED) * peak
        what = "the warm-up is over" if rising else what
        if rising or now - floor > UNFINISHED * (peak - floor):
            seen = f"{rate}; the run ends after {end:,.0f}, at a factor of {now:.3g}"
    if seen:
        return Finding(
            code="RB503",
            severity="warning",
            what=f"the run ends before {what}",
            seen=seen,
            why="what a decay gains, it gains at its end",
            fix=f"a schedule of the run's own length: {math.ceil(end / size):,} "
            f"updates of {size}, or by examples rate='cosine:{end:.0f}'",
        )
    if rate is not None and setup.schedule is not None:
        try:
            check_decay_is_met(rate, setup.schedule, end=end, batch_size=job.batch_size)
        except SettingError as error:
            return replace(Finding.of("RB503", error), severity="warning")
    return None


def average_in_steps(probe: Probe) -> Finding | None:
    """Where the batch changes, an average of the weights keeps its length in examples.

    An exponential average with decay 0.999 remembers about 1,000 updates, however many
    examples they hold. As the batch grows eight times its memory grows eight times in
    examples: late in a run it lags behind, and what is evaluated and kept are weights
    of long ago. The decay follows as ``decay ** (B' / B)`` (Busbridge et al. 2023,
    arXiv:2307.13813: with it BYOL trains in batches of up to 24,576 without loss).

    Fix: ``rb.schedules.scaling.scaled_ema`` as the batch changes.

    It knows the decay of torch's ``get_ema_avg_fn`` and ``get_ema_multi_avg_fn``, and
    of anything with an attribute ``decay``; an equal average has none.
    """
    decay, change = _decay_of(probe.setup.averaged), _change(probe)
    if change is None or decay is None or not 0 < decay < 1:
        return None
    scaling = scaling_for("sgd", change.first, change.last)
    wanted = scaled_ema(decay, scaling)
    before, after = (_half_life(decay) * b for b in (change.first, change.last))
    return Finding(
        code="RB504",
        severity="warning",
        what="the average of the weights counts steps while the batch changes",
        seen=f"decay {decay:g}: half of it lies in the last {show_number(before)} "
        f"examples at batch {change.first}, {show_number(after)} at {change.last}",
        why="it lags behind, or forgets, as the batch moves",
        fix=f"decay ** (B / {change.first}): {wanted:.4g} at batch {change.last} "
        "(rightbatch.schedules.scaling.scaled_ema)",
    )


def beta2_in_steps(probe: Probe) -> Finding | None:
    """Where the batch changes in a loop, Adam's second moment keeps its length.

    Beta2 is a memory in updates. What holds over batches is its half-life in examples
    (Marek et al. 2025, arXiv:2507.07101): of a measured grid the best beta2 is 0.995 at
    a batch of 64 and 0.95 at 512 (marin-community/marin#4567), and ``beta2 ** (B' /
    B)`` gives 0.961 there. Kept in updates, a ramp's last batches are divided by
    moments of long ago.

    Fix: ``rb.schedules.Hyperparameters(optimizer, first, scheduler=by_examples)`` moves
    rate, beta2 and weight decay together; `rb.train` and `rb.Controller` do it too.

    It looks at loops that give their ``scheduler``, and is silent where that is the
    `ByExamples` of a `Hyperparameters`.
    """
    change, scheduler = _change(probe), probe.setup.scheduler
    follows = getattr(scheduler, "around", nullcontext) is not nullcontext
    beta2 = _beta2(probe)
    if change is None or scheduler is None or follows or beta2 is None:
        return None
    wanted = scaled_beta2(beta2, scaling_for("adam", change.first, change.last))
    if abs(math.log(_half_life(wanted) / _half_life(beta2))) <= math.log(NEAR):
        return None
    before, after = (_half_life(beta2) * b for b in (change.first, change.last))
    return Finding(
        code="RB505",
        severity="warning",
        what="Adam's beta2 counts steps while the batch changes",
        seen=f"beta2 {beta2:g}: a half-life of {show_number(before)} examples at batch "
        f"{change.first}, {show_number(after)} at {change.last}",
        why="the second moment is that of gradients long gone, or of the last few",
        fix=f"beta2 {wanted:.4g} at batch {change.last}: "
        f"rb.schedules.Hyperparameters(optimizer, {change.first}, scheduler=...)",
    )


def beta2_too_short(probe: Probe) -> Finding | None:
    """Adam's second moment is a mean over many examples, also at a small batch.

    A beta2 of 0.95 remembers 13 updates. With batches of 512 these are 7,000 examples;
    with batches of 4 they are 54, and the step is divided by the noise of a few
    examples. That is why small batches were long thought unstable under Adam: with the
    half-life kept in tokens they train as well or better, down to one example (Marek et
    al. 2025, arXiv:2507.07101; Zhang et al. 2024, arXiv:2406.19146). The built-in
    transformer at a batch of 4 comes to a held-out loss of 2.101 with beta2 0.95, 2.084
    with 0.99 and 2.076 with 0.999 [measured: 8,192 sequences, rate 1e-3, one seed].

    Fix: raise beta2 to what has the same half-life in examples: ``beta2 ** (B' / B)``,
    which `rb.scale_hyperparameters` does.

    What is too short depends on the job; reported is what is far below everything that
    was found to work: a half-life of less than 256 examples.
    """
    beta2, setup = _beta2(probe), probe.setup
    if beta2 is None:
        return None
    # That the recipe follows a job's other batches, or should, is another rule's.
    size = setup.split(probe.job).batch_size if setup.sample else probe.job.batch_size
    memory = _half_life(beta2) * size
    if memory >= LEAST_MEMORY:
        return None
    # Rounded up, so that what is recommended is long enough.
    wanted = math.ceil(1000 * 0.5 ** (size / LEAST_MEMORY)) / 1000
    return Finding(
        code="RB506",
        severity="warning",
        what=f"Adam's beta2 of {beta2:g} is short for a batch of {size}",
        seen=f"half of the second moment comes from the last {show_number(memory)} "
        "examples",
        why="the step is divided by the noise of a few examples",
        fix=f"beta2 of {wanted:g} or more, or a larger batch",
    )


def clipping_always_binds(probe: Probe) -> Finding | None:
    """Gradients are clipped now and then, not always.

    A gradient that is always clipped leaves its length behind: every step is as long as
    ``lr * clip_norm``, whatever batch it is made of (Zhang et al. 2020,
    arXiv:1905.11881). That is another optimizer, normalised SGD: the rate no longer
    follows the batch linearly, and a rate that was found with the limit is wrong
    without it. The limit is meant for the rare long gradient.

    Fix: raise ``clip_norm`` above the usual norm, and lower the rate by as much where
    all steps were clipped. Under Adam, which divides by the gradient's size anyway, the
    rate stays, and this is a note.

    Without a run three batches at the initial weights are looked at, where gradients
    are long: only ten times the limit is reported. With one (``run=``) it is what the
    run has seen.
    """
    clip_norm, known = probe.job.clip_norm, probe.setup.measurements
    if clip_norm is None or not probe.setup.recipe:
        return None
    if known is not None and known.noise:
        size, least = known.job.batch_size, clip_norm
        norms = [_norm_along(point, size) for point in known.noise]
        where = f"at {len(norms)} points of a run"
    else:
        norms, least = _first_norms(probe), FAR_ABOVE * clip_norm
        where = f"of {len(norms)} batches at the initial weights"
    if not min(norms) > least:
        return None
    own_size = kinds_of(probe.optimizer)[0].family in MOMENTS
    return Finding(
        code="RB507",
        severity="note" if own_size else "warning",
        what="the gradient is always clipped",
        seen=f"clip_norm {clip_norm:g}; norms of {show_number(min(norms))} to "
        f"{show_number(max(norms))} {where}",
        why="every step is equally long: the batch changes its direction alone, and "
        "rules for the rate do not hold",
        fix=f"clip_norm={show_number(2 * max(norms))}, with a rate chosen anew; or "
        "none",
    )


RECIPE_RULES: dict[str, Rule] = {
    "RB501": rate_not_scaled,
    "RB502": schedule_in_steps,
    "RB503": decay_never_finishes,
    "RB504": average_in_steps,
    "RB505": beta2_in_steps,
    "RB506": beta2_too_short,
    "RB507": clipping_always_binds,
}


@dataclass(frozen=True, slots=True)
class _Change:
    """A batch that changes along a run: the first, and the one farthest from it."""

    schedule: Schedule
    first: int
    last: int


def _change(probe: Probe) -> _Change | None:
    """How the batch changes, by the schedule; None: it stays, or there is no recipe.

    A live schedule has no last batch: twice its first stands for it.
    """
    schedule, end = probe.setup.schedule, probe.job.run_examples or 1 << 60
    if schedule is None or not probe.setup.recipe:
        return None
    first, last = schedule.start, 2 * schedule.start
    if not schedule.live:
        reached = (schedule.largest(end), schedule.batch_size(int(end)))
        last = max(reached, key=lambda batch: abs(math.log(batch / first)))
    return _Change(schedule, first, last) if last != first else None


def _steps(schedule: Schedule, end: float, parts: int = 1000) -> float:
    """How many updates so many examples are."""
    middles = ((i + 0.5) * end / parts for i in range(parts))
    return sum(end / parts / schedule.batch_size(int(seen)) for seen in middles)


def _scaling(probe: Probe, batch_size: int) -> Scaling:
    """How the first param group follows from the job's batch to this one."""
    laws, kind = probe.laws, kinds_of(probe.optimizer)[0]
    noise_scale = None
    if laws is not None and laws.measured:
        noise_scale = laws.critical.critical_batch.value
    return scaling_for(
        kind.family,
        probe.job.batch_size,
        batch_size,
        noise_scale=noise_scale,
        decoupled_decay=kind.decoupled,
    )


def _unfinished_scheduler(probe: Probe, end: float) -> str:
    """By how much a scheduler is longer than the run; empty where it is not."""
    scheduler, size = probe.setup.scheduler, probe.setup.split(probe.job).batch_size
    if isinstance(scheduler, ByExamples):
        scheduler, size = scheduler.scheduler, scheduler.reference
    elif _change(probe) is not None:
        return ""  # the other rule's
    for name in ("T_max", "total_steps"):
        meant, made = getattr(scheduler, name, None), math.ceil(end / size)
        if isinstance(meant, int) and made < COSINE_LEFT * meant:
            kind = type(scheduler).__name__
            return (
                f"{kind}({name}={meant:,}), and {end:,.0f} examples in batches of "
                f"{size} are {made:,} updates: {made / meant:.0%} of its way"
            )
    return ""


def _decay_of(averaged: Any) -> float | None:
    """The decay of an exponential average of weights; None where it is not known."""
    decay = getattr(averaged, "decay", None)
    for name in ("avg_fn", "multi_avg_fn"):
        function = getattr(averaged, name, None)
        if inspect.isfunction(function):
            inside = inspect.getclosurevars(inspect.unwrap(function)).nonlocals
            decay = inside.get("decay", decay)
    return decay if isinstance(decay, float) else None


def _beta2(probe: Probe) -> float | None:
    """The shortest memory of a second moment among the param groups."""
    if not probe.setup.recipe:
        return None
    groups = zip(probe.optimizer.param_groups, kinds_of(probe.optimizer), strict=True)
    moments = [group for group, kind in groups if kind.family in MOMENTS]
    betas = [g["betas"][1] for g in moments if isinstance(g.get("betas"), tuple)]
    return min((float(beta) for beta in betas), default=None)


def _half_life(beta: float) -> float:
    """Updates after which half of a running mean is forgotten.

    Example:
        >>> round(_half_life(0.95), 1)
        13.5
    """
    if beta <= 0:
        return 0.0
    return math.log(0.5) / math.log(beta) if beta < 1 else math.inf


def _norm_along(point: NoisePoint, batch_size: int) -> float:
    """Root mean square norm of a batch's gradient at a point of a run."""
    square = point.plain.grad_norm_sq + point.plain.trace / batch_size
    return math.sqrt(max(square, 0.0))


def _first_norms(probe: Probe) -> list[float]:
    """Norms of the gradients of a few batches at the initial weights."""
    job, split = probe.job, probe.setup.split(probe.job)
    generator = torch.Generator().manual_seed(job.seed)
    drawn = torch.randperm(job.length, generator=generator)
    norms = []
    for indices in drawn.split(split.batch_size)[:CLIPPED_BATCHES]:
        pieces = indices.split(split.micro_batch)
        parts = [Part(job.batch(piece, probe.device), len(piece)) for piece in pieces]
        norms.append(float(probe.gradient(parts)[0].norm()))
    return norms
