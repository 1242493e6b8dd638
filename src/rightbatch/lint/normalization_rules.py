"""Layers that normalise over the batch, against how the batch is made."""

from __future__ import annotations

from rightbatch.core.errors import RightbatchError
from rightbatch.core.findings import Finding, Severity
from rightbatch.coupling.batch_statistics import BatchStatistic
from rightbatch.coupling.ghost_norm import GhostBatchNorm
from rightbatch.lint.comparisons import drawn_by, in_pieces
from rightbatch.lint.probe import Probe, Rule

EPOCH = 2_000_000  # draws of a loader that are read to find its last batch [assumed]
# Rows per statistic: at 16, 8, 4, 2 images on a GPU the error of ResNet-50 rises by
# 0.1, 1.2, 3.7, 11.1 points over that at 32. [cited: Wu & He 2018, arXiv:1803.08494]
FEW_ROWS, ENOUGH_ROWS = 8, 16
FEW_VALUES = 64  # 3 % of an output's movement is that of others [derived]


def last_batch_of_one(probe: Probe) -> Finding | None:
    """The last batch of an epoch can be trained on like the others.

    Without ``drop_last`` an epoch ends with what is left over. BatchNorm refuses one
    value per channel ("Expected more than 1 value per channel when training"), and a
    normalisation by hand divides by a standard deviation of nothing: the run crashes,
    or its weights are NaN, at the end of the first epoch. The last batch is tried as
    the loader makes it, on every rank; without a loader, as a ``DataLoader`` would.

    Fix: ``drop_last=True``, or a batch size that leaves more over.

    Not seen: loaders that can only be iterated, what is longer than two million
    examples, and a loop of which one batch is given, without its loader.
    """
    split, loader = probe.setup.split(probe.job), probe.setup.loader
    if loader is None and probe.setup.sample:
        return None
    usual = split.micro_batch
    size = -(-probe.job.length // split.ranks) % usual
    if loader is not None:
        draws = drawn_by(loader, EPOCH)
        if draws is None or not draws.whole:
            return None
        usual = max(len(part) for part in draws.ranks[0][0])
        size = min(len(steps[-1][-1]) for steps in draws.ranks)
    if not 0 < size < usual or not (reason := _failure(probe, size)):
        return None
    severity: Severity = "note" if loader is None else "error"
    whose = "a DataLoader without drop_last" if loader is None else "the loader"
    return Finding(
        code="RB301",
        severity=severity,
        what=f"the last batch of an epoch holds {size}, and cannot be trained on",
        seen=f"{whose} ends with {size} after batches of {usual}: {reason}",
        why="the run crashes, or its weights become NaN, where the first epoch ends",
        fix="drop_last=True, or a batch size that leaves more over",
    )


def _failure(probe: Probe, size: int) -> str:
    """Why the first so many examples cannot be trained on; empty: they can."""
    try:
        probe.differentiate(size)
    except RightbatchError as error:
        return (error.seen or error.what).splitlines()[0]
    gradients = [p.grad for p in probe.model.parameters() if p.grad is not None]
    finite = all(bool(g.isfinite().all()) for g in gradients)
    return "" if finite else "NaN or infinity in the gradient"


def few_values_per_statistic(probe: Probe) -> Finding | None:
    """Layers that normalise over the batch see eight examples at once, or more.

    With n values behind a mean, the other values move an output by 2/n of what its own
    value does (sum of squared derivatives) [measured: 1.00, 0.29, 0.13 at n = 2, 8,
    16]: that is noise in training which eval mode, with its running statistics, does
    not have. At 8, 4 and 2 images on a GPU the error of ResNet-50 on ImageNet rises by
    1.2, 3.7 and 11.1 points over that at 32 (Wu & He 2018, arXiv:1803.08494).
    Positions of one image count little, as they are alike.

    Fix: a larger micro-batch, statistics over all ranks, or GroupNorm.

    Not seen: normalisations written by hand.
    """
    split = probe.setup.split(probe.job)

    def behind(statistic: BatchStatistic) -> tuple[int, int]:
        """Examples, as several rows may be of one, and values."""
        together = split.ranks if statistic.shared else 1
        rows = min(statistic.rows, split.micro_batch)
        return rows * together, statistic.values * together

    least = min(probe.batch_statistics, key=behind, default=None)
    if least is None:
        return None
    rows, values = behind(least)
    if rows >= FEW_ROWS:
        return None
    why = "values of one example are alike"
    if values < FEW_VALUES:
        why = f"{2 / (2 + values):.0%} of an output's movement is that of the others"
    return Finding(
        code="RB302",
        severity="warning",
        what=f"{least} takes its statistics from {rows} examples",
        seen=f"{values} values per channel, of {rows} examples",
        why=f"{why}, and eval mode has other statistics: at 8, 4, 2 images the "
        "error of ResNet-50 rises by 1.2, 3.7, 11.1 points (arXiv:1803.08494)",
        fix="a micro-batch of 16 or more, rb.coupling.SyncBatchNorm, or GroupNorm",
    )


def norm_under_accumulation(probe: Probe) -> Finding | None:
    """Accumulated micro-batches give the gradient of the whole batch.

    A layer that normalises over the batch sees one micro-batch at a time: accumulation
    then trains another function than the whole batch does, that of groups of this size
    (gradients 18 % apart in a small network, to 1e-16 those of ``GhostBatchNorm``)
    [measured]. Running statistics move up to k times as far for k micro-batches
    (pytorch issue 46516). Both gradients are made at the initial weights and compared.

    Fix: ``rb.coupling.GhostBatchNorm``, which says the group; GroupNorm; or the largest
    micro-batch that fits.

    Not seen: anything, where there is no time for both gradients, or where model or
    loss draw random numbers beside dropout layers.
    """
    if probe.coupled != "normalization" or (cut := in_pieces(probe)) is None:
        return None
    passes, size, gradient = cut
    micro = probe.setup.split(probe.job).micro_batch
    where = f"{layers[0]}" if (layers := probe.batch_statistics) else "the model"
    ghost = f", or GhostBatchNorm(group={micro}), which says so" if micro > 1 else ""
    return Finding(
        code="RB303",
        severity="warning",
        what=f"{where} normalises over {micro} examples of a batch at a time",
        seen=f"the gradient of {passes} x {size} accumulated differs by "
        f"{gradient.share:.2g} of its norm from that of {size * passes} at once",
        why="this trains another function than the whole batch, and running "
        "statistics move as many times as there are passes",
        fix=f"GroupNorm, a larger micro-batch{ghost}",
    )


def norm_under_ranks(probe: Probe) -> Finding | None:
    """Layers that normalise over the batch do so over all ranks, or over fixed groups.

    Under DDP every rank normalises over its own examples, so that the function that is
    trained changes with the number of ranks, at an equal batch; and before each
    forward pass all ranks get the running statistics of rank 0, so that evaluation
    sees those of 1/n of the data. A note where a rank has 16 examples or more, a
    warning below (see RB302).

    Fix: ``rb.coupling.convert_norms(model, to="sync")``, which runs on gloo too;
    ``torch.nn.SyncBatchNorm`` on GPUs; ``GhostBatchNorm`` where the group is meant.

    Not seen: normalisations written by hand.
    """
    split = probe.setup.split(probe.job)
    if split.ranks < 2:
        return None
    alone = _alone(probe)
    if not alone:
        return None
    rows = min(alone[0].rows, split.micro_batch)
    return Finding(
        code="RB304",
        severity="note" if rows >= ENOUGH_ROWS else "warning",
        what=f"{alone[0]} normalises on each of {split.ranks} ranks by itself",
        seen=f"{len({s.layer for s in alone})} such layer(s), over "
        f"{split.micro_batch} of {split.micro_batch * split.ranks} examples",
        why="the function changes with the number of ranks, and evaluation has the "
        "running statistics of rank 0 alone",
        fix='rb.coupling.convert_norms(model, to="sync"), or GroupNorm',
    )


def _alone(probe: Probe) -> list[BatchStatistic]:
    """Statistics over all that a rank has in a pass, and over nothing else."""
    micro = min(probe.setup.split(probe.job).micro_batch, probe.job.length)
    return [
        s
        for s in probe.batch_statistics
        if not s.shared and s.rows >= micro and s.kind != GhostBatchNorm.__name__
    ]


def norm_with_contrastive_loss(probe: Probe) -> Finding | None:
    """A model under a contrastive loss does not normalise over the batch.

    Statistics tell an example which others are with it. Where each rank, or each
    micro-batch, has its own, a positive pair can be known by having the same ones, and
    the loss falls without a representation being learned: MoCo shuffles examples
    between GPUs for that reason (He et al. 2019, arXiv:1911.05722, section 3.3). And a
    gradient that is made in chunks (GradCache) is wrong: by 45 % of its norm in a
    small network, silently [measured]. A note where one pass holds the whole batch.

    Fix: LayerNorm or GroupNorm; statistics over all ranks.

    Not seen: normalisations written by hand.
    """
    if not probe.contrastive or not (layers := probe.batch_statistics):
        return None
    split = probe.setup.split(probe.job)
    parts = split.accumulation * (1 if layers[0].shared else split.ranks)
    return Finding(
        code="RB305",
        severity="warning" if parts > 1 else "note",
        what=f"{layers[0]} normalises over a batch whose examples the loss compares",
        seen=f"{layers[0].values} values per channel, {parts} part(s) of a batch of "
        f"{split.batch_size} with statistics of their own",
        why="statistics of its own tell which part a pair is in, so the loss falls "
        "without learning; and gradients in chunks are silently wrong",
        fix='LayerNorm or GroupNorm; on ranks rb.coupling.convert_norms(to="sync")',
    )


NORMALIZATION_RULES: dict[str, Rule] = {
    "RB301": last_batch_of_one,
    "RB302": few_values_per_statistic,
    "RB303": norm_under_accumulation,
    "RB304": norm_under_ranks,
    "RB305": norm_with_contrastive_loss,
}
