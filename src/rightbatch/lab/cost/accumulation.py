"""Accumulated micro-batches make the large batch's gradient, for a price in time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rightbatch.coupling.norm_conversion import convert_norms
from rightbatch.job.job import Job
from rightbatch.lab.check import at_least, at_most
from rightbatch.lab.claim import Chart, Claim, Seen, Trial, Words
from rightbatch.lab.cost.cpu_time import cpu_seconds, ratio
from rightbatch.lab.plots import bars
from rightbatch.lab.training_runs import batch_gradient, digits_job, started

BATCH, MICRO = 100, 8  # the last piece is short: a mean of means would show
EVEN = 96  # groups that are normalised together are all of one size


def normed_model(group: int | None = None) -> nn.Module:
    """An MLP 64-64-10, normalised over the micro-batch or over groups of it."""
    hidden = [nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU()]
    model = nn.Sequential(*hidden, nn.Linear(64, 10))
    if group is not None:
        convert_norms(model, "ghost", group=group)
    return model


def gradient_of(job: Job, batch: int, micro: int) -> Tensor:
    """Of the first examples, in micro-batches, at the initial weights."""
    with started(job) as state:
        state.split(batch, micro)
        return batch_gradient(state, torch.arange(batch))


def mean_of_means(job: Job, batch: int, micro: int) -> Tensor:
    """What a loop makes that divides by the number of pieces, not of examples."""
    with started(job) as state:
        parts = torch.arange(batch).split(micro)
        return torch.stack([batch_gradient(state, part) for part in parts]).mean(0)


def distance(one: Tensor, other: Tensor) -> float:
    """Of a gradient from another, relative to that."""
    return float((one - other).norm() / other.norm())


def run(trial: Trial) -> Seen:
    """Gradients made both ways, with and without BatchNorm; then the time."""
    trial.tell("gradients")
    job = digits_job(seed=trial.seed)
    whole = gradient_of(job, BATCH, BATCH)
    exact = distance(gradient_of(job, BATCH, MICRO), whole)
    means = distance(mean_of_means(job, BATCH, MICRO), whole)
    norm = digits_job(seed=trial.seed, model=normed_model)
    pieces = gradient_of(norm, EVEN, MICRO)
    off = distance(pieces, gradient_of(norm, EVEN, EVEN))
    groups = digits_job(seed=trial.seed, model=lambda: normed_model(MICRO))
    ghost = distance(gradient_of(groups, EVEN, EVEN), pieces)
    trial.tell("timing")
    with started(job) as state:
        steps = [(state, BATCH, MICRO), (state, BATCH, BATCH)]
        pieces_s, at_once_s = cpu_seconds(steps, trial.size(7, 25))
    price = ratio(pieces_s, at_once_s)
    checks = (
        at_most("gradients apart by", 1e-5, exact, wrong={"a mean of means": means}),
        at_least(
            "CPU time in pieces over at once", 1.5, price, wrong={"no price": 1.0}
        ),
        at_least("with BatchNorm", 0.05, off, wrong={"without": exact}, part="limit"),
        at_most("in groups of 8", 1e-5, ghost, wrong={"of all": off}, part="limit"),
    )
    names = ("no BatchNorm", "mean of means", "BatchNorm", "BatchNorm in groups of 8")
    distances = dict(zip(names, (exact, means, off, ghost), strict=True))
    chart = bars(distances, "relative distance of the two gradients", log=True)
    caption = "Rounding where examples do not touch; another function where they do."
    zh = "互不接触时只差舍入误差；接触时是另一个函数。"
    return Seen(checks, (Chart(caption, zh, chart),))


CLAIM = Claim(
    id="accumulation",
    texts=("5 显存墙与时间的互换: accumulation is the large batch, time for space",),
    papers=("Hoffer et al. 2017, arXiv:1705.08741",),
    theory="grad of sum = sum of grads, over one count; time = k t(b) > t(k b)",
    verdict="holds if",
    seconds=3,
    power="gradients to float32; 7 rounds tell a price of 1.5; 25 with --full",
    en=Words(
        title="Accumulation equals the large batch, and costs time",
        claimed="Gradients of small pieces, added up before one update, are those of "
        "the large batch; the speed of many at once is lost.",
        assumed="The sum of losses is divided by the count of the whole batch, and no "
        "example's loss depends on another: BatchNorm breaks that.",
        seen="Digits are differentiated at once and in pieces: the two differ by "
        "rounding, and pieces take longer. With BatchNorm they differ far more, until "
        "it normalises groups of 8 both times.",
        answer="the examples of a batch do not touch each other",
    ),
    zh=Words(
        title="梯度累积等于大批量，但要花时间",
        claimed="几小份的梯度相加再更新一次，就是大批量的梯度；失去的是并行。",
        assumed="除以整批的样本数，且样本的损失互不依赖：批量归一化打破了后者。",
        seen="对数字图像一次或分份求梯度：只差舍入误差，而分份更慢。用批量归一化则相差"
        "很大，直到两次都按 8 个一组归一化。",
        answer="批量中的样本互不接触",
    ),
    run=run,
)
