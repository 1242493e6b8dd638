"""BatchNorm's own batch decides how well a network does on new data."""

from __future__ import annotations

import functools

import torch
from torch import nn

from rightbatch.core.guards import preserved_rng
from rightbatch.lab.check import at_least
from rightbatch.lab.claim import Chart, Claim, Seen, Trial, Words
from rightbatch.lab.generalisation.ratio import ratio
from rightbatch.lab.plots import Series, plot
from rightbatch.lab.samples import mean_of
from rightbatch.lab.training_runs import digits_job, looked
from rightbatch.training.run_state import RunState

BATCH, RATE = 128, 0.4
TINY, SMALL = 2, 8  # examples in a group of statistics
LOOKS = 6  # the last ones, whose mean is the result


def network(norm: bool) -> nn.Module:
    """Linear, BatchNorm or nothing, ReLU, Linear."""
    between = [nn.BatchNorm1d(64)] if norm else []
    return nn.Sequential(nn.Linear(64, 64), *between, nn.ReLU(), nn.Linear(64, 10))


def held_out(seed: int, group: int | None, *, norm: bool, steps: int) -> float:
    """The held-out loss at the end, with statistics of groups in an equal batch."""
    job = digits_job(
        seed=seed,
        model=functools.partial(network, norm),
        optimizer=functools.partial(torch.optim.SGD, lr=RATE),
    )
    values = []
    with preserved_rng():
        run = RunState.start(job, alone=True, group=group)
        run.split(BATCH)
        while run.steps < steps:
            run.step()
            if run.steps % 10 == 0 and job.evaluate is not None:
                values.append(looked(job.evaluate, run.network))
        run.close()
    return sum(values[-LOOKS:]) / LOOKS


def run(trial: Trial) -> Seen:
    """The same batches and rates; only what is normalised together differs."""
    seeds = range(trial.seed * 100, trial.seed * 100 + trial.size(12, 16))
    few = seeds[:4]  # where the difference is large
    sizes = trial.size((TINY, SMALL, BATCH), (TINY, 4, SMALL, 16, 32, 64, BATCH))
    losses: dict[int, list[float]] = {}
    for size in sizes:
        trial.tell(f"statistics of {size}")
        group = None if size == BATCH else size
        losses[size] = [
            held_out(s, group, norm=True, steps=600)
            for s in (few if size == TINY else seeds)
        ]
    without = [held_out(seed, None, norm=False, steps=600) for seed in few]
    tiny = ratio(losses[TINY], losses[BATCH][: len(few)])
    checks = (
        at_least(
            f"held-out loss, statistics of {TINY} over those of {BATCH}",
            2.0,
            tiny,
            wrong={"statistics that do not matter": 1.0},
        ),
        at_least(
            f"held-out loss, statistics of {BATCH} over those of {SMALL}",
            1.02,
            ratio(losses[BATCH], losses[SMALL]),
            part="limit",
            wrong={
                "statistics that do not matter": 1.0,
                "the larger the better": 1 / tiny.value,
            },
        ),
    )
    flat = mean_of(without).value
    chart = plot(
        [
            Series(
                f"batch {BATCH}", sizes, [mean_of(losses[s]) for s in sizes], "points"
            ),
            Series("without BatchNorm", (TINY, BATCH), (flat, flat), "dashed"),
        ],
        "examples normalised together",
        "held-out loss",
        log="xy",
    )
    return Seen(checks, (Chart(CAPTION, CAPTION_ZH, chart),))


CAPTION = (
    "Batch, rate and updates are the same everywhere; only the groups that BatchNorm "
    "normalises differ. Neither the smallest nor the largest is best."
)
CAPTION_ZH = (
    "批量、学习率和更新次数处处相同，只有 BatchNorm 一起归一化的样本数不同。"
    "最小和最大的都不是最好的。"
)
CLAIM = Claim(
    id="batchnorm-batch",
    texts=("4 独立的自由：为后批量时代而设计: 批量归一化依赖大批量以获得稳定统计数据",),
    papers=("Hoffer, Hubara, Soudry 2017, arXiv:1705.08741",),
    theory="held-out loss(statistics of 2) >> (128), but (8) < (128)",
    verdict="holds if",
    seconds=35,
    power="12 seeds of groups of 8 and 128: held-out losses 10 % apart are told; 16 "
    "and all groups in powers of two with --full",
    en=Words(
        title="BatchNorm needs many examples for its statistics",
        claimed="BatchNorm depends on large batches, as mean and variance of few "
        "examples are unstable.",
        assumed="The statistics come from the examples that are normalised together, "
        "which need not be the whole batch of an update.",
        seen="Updates of 128 digits are normalised in groups of different size, all "
        "else equal. Pairs ruin the result. Yet groups of eight do better on new "
        "digits than all 128 together: the noise of their statistics regularises.",
        answer="groups are very small, such as pairs. From some examples on "
        "more of them are no gain, and can be a loss on new data",
    ),
    zh=Words(
        title="BatchNorm 的统计量需要很多样本",
        claimed="BatchNorm 依赖大批量，因为少数样本的均值和方差不稳定。",
        assumed="统计量来自一起归一化的那些样本，它们不必是一次更新的整个批量。",
        seen="每次更新用 128 张数字图像，只改变一起归一化的分组大小。两个一组会毁掉"
        "结果；但八个一组在新数据上比 128 个一起更好：统计量的噪声起了正则化作用。",
        answer="分组极小，例如两个一组。超过若干样本后，"
        "再多并无好处，在新数据上甚至更差",
    ),
    run=run,
)
