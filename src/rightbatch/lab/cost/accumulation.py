"""Accumulated micro-batches make the large batch's gradient, for a price in time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rightbatch.coupling.convert_norms import convert_norms
from rightbatch.job.job import Job
from rightbatch.lab.check import at_least, at_most
from rightbatch.lab.claim import Chart, Claim, Seen, Trial, Words
from rightbatch.lab.cost.cpu_time import cpu_seconds, ratio, step_of
from rightbatch.lab.plots import Series, bars, plot
from rightbatch.lab.training_runs import batch_gradient, digits_job, started

BATCH, MICRO = 100, 8  # the last piece is short: a mean of means would show
MICROS = (2, 8, 32, BATCH)


def batch_norm_model() -> nn.Module:
    """An MLP 64-64-10 whose hidden layer is normalised over the micro-batch."""
    return nn.Sequential(
        nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10)
    )


def ghost_model() -> nn.Module:
    """The same, normalised over groups of so many as a micro-batch holds."""
    model = batch_norm_model()
    convert_norms(model, "ghost", group=MICRO)
    return model


def gradient_of(job: Job, batch: int, micro: int) -> Tensor:
    """Of the first examples, in micro-batches, at the initial weights."""
    with started(job) as state:
        state.split(batch, micro)
        return batch_gradient(state, torch.arange(batch))


def distance(one: Tensor, other: Tensor) -> float:
    """Of a gradient from another, relative to that."""
    return float((one - other).norm() / other.norm())


def run(trial: Trial) -> Seen:
    """Gradients made both ways, with and without BatchNorm; then the time."""
    trial.tell("gradients")
    job = digits_job(seed=trial.seed)
    whole = gradient_of(job, BATCH, BATCH)
    exact = distance(gradient_of(job, BATCH, MICRO), whole)
    with started(job) as state:
        parts = torch.arange(BATCH).split(MICRO)
        means = torch.stack([batch_gradient(state, part) for part in parts]).mean(0)
    norm, even = digits_job(seed=trial.seed, model=batch_norm_model), BATCH - 4
    pieces = gradient_of(norm, even, MICRO)  # ghost groups are all of one size
    touching = distance(pieces, gradient_of(norm, even, even))
    ghost_job = digits_job(seed=trial.seed, model=ghost_model)
    ghost = distance(gradient_of(ghost_job, even, even), pieces)
    trial.tell("timing")
    with started(job) as state:
        steps = {str(m): step_of(state, BATCH, m) for m in MICROS}
        seconds = cpu_seconds(steps, trial.size(7, 25))
    prices = [ratio(seconds[str(m)], seconds[str(BATCH)]) for m in MICROS]
    checks = (
        at_most(
            "distance of the accumulated gradient from the whole batch's",
            1e-5,
            exact,
            wrong={"a mean of the pieces' means": distance(means, whole)},
        ),
        at_least(
            "CPU time of a step in pieces of 8 over one at once",
            1.5,
            prices[1],
            wrong={"no price": 1.0},
        ),
        at_least(
            "the same distance with BatchNorm",
            0.05,
            touching,
            wrong={"examples that do not touch": exact},
            part="limit",
        ),
        at_most(
            "with BatchNorm over groups of 8, at once and in pieces",
            1e-5,
            ghost,
            wrong={"over the whole batch": touching},
            part="limit",
        ),
    )
    distances = bars(
        {
            "no BatchNorm": exact,
            "mean of means": distance(means, whole),
            "BatchNorm": touching,
            "BatchNorm in groups of 8": ghost,
        },
        "relative distance of the two gradients",
        log=True,
    )
    price = plot(
        [
            Series("measured", MICROS, prices, "points"),
            Series("no price", MICROS, [1.0] * len(MICROS), "dashed"),
        ],
        "micro-batch",
        f"CPU time of {BATCH} examples over that at once",
        log="xy",
    )
    return Seen(
        checks,
        (
            Chart(
                "Rounding where examples do not touch; another function where they do.",
                "样本互不接触时只差舍入误差；相互接触时就是另一个函数。",
                distances,
            ),
            Chart(
                "Every piece pays the fixed cost of a pass once more.",
                "每一小份都要再付一次固定开销。",
                price,
            ),
        ),
    )


CLAIM = Claim(
    id="accumulation",
    texts=(
        "5 显存墙与时间的互换: accumulation simulates the large batch exactly",
        "5 显存墙与时间的互换: it gives up parallel speed, time for space",
    ),
    papers=("Hoffer et al. 2017, arXiv:1705.08741 (ghost batch norm)",),
    theory="grad of sum = sum of grads, over one count; time = k t(b) > t(k b)",
    verdict="holds if",
    seconds=3,
    power="gradients to float32; 7 rounds tell a price of 1.5; 25 with --full",
    en=Words(
        title="Accumulation equals the large batch, and costs time",
        claimed="Gradients of small pieces, added up before one update, are in "
        "mathematics those of the large batch; what is lost is the speed of many at "
        "once.",
        assumed="The sum of losses is divided by the count of the whole batch, and no "
        "example's loss depends on another: BatchNorm breaks that.",
        seen="A batch of 100 digits is differentiated at once and in pieces of 8, the "
        "last one short: the two differ by rounding, and the pieces take longer. With "
        "BatchNorm they differ by far more, until it normalises groups of 8 both "
        "times.",
        answer="the examples of a batch do not touch each other",
    ),
    zh=Words(
        title="梯度累积等于大批量，但要花时间",
        claimed="把几小份的梯度加起来再更新一次，数学上就是大批量的梯度；失去的是并行的"
        "速度。",
        assumed="损失之和除以整个批量的样本数，而且任何样本的损失都不依赖其他样本：批量"
        "归一化打破了这一点。",
        seen="对 100 张数字图像一次求梯度，再按每份 8 张（最后一份不足）求梯度：两者只"
        "差舍入误差，而分份更慢。用批量归一化时相差很大，直到两次都按 8 个一组归一化。",
        answer="批量中的样本互不接触",
    ),
    run=run,
)
