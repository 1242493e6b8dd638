"""Many small, fairly exact updates get further than one heavy one in equal time."""

from __future__ import annotations

import statistics

from rightbatch.job.job import Job
from rightbatch.lab.check import at_least
from rightbatch.lab.claim import Chart, Claim, Seen, Trial, Words
from rightbatch.lab.cost.cpu_time import cpu_seconds, step_of
from rightbatch.lab.plots import Series, plot
from rightbatch.lab.samples import mean_of
from rightbatch.lab.training_runs import Curve, digits_job, started, trained

SMALL = 32
# Tried at each batch; the best counts. They hold the best of a wider grid [measured].
RATES = {1: (0.01, 0.03), SMALL: (0.1, 0.2), -1: (0.3, 0.6, 1.0)}


def best_run(job: Job, batch: int, rates: tuple[float, ...], steps: int) -> Curve:
    """Of one run at each rate that with the lowest held-out loss at any look."""
    every = max(steps // 8, 1)
    curves = [
        trained(job, batch_size=batch, lr=lr, steps=steps, every=every) for lr in rates
    ]
    return min(curves, key=lambda curve: min(curve.values))


def run(trial: Trial) -> Seen:
    """An epoch at b = 32, its CPU time at b = N and at b = 1; and one update."""
    whole = digits_job().length
    trial.tell("timing")
    with started(digits_job(seed=trial.seed)) as state:
        pieces = {str(b): step_of(state, b) for b in (1, SMALL, whole)}
        timed = cpu_seconds(pieces, trial.size(5, 15))
    seconds = {b: statistics.median(timed[str(b)]) for b in (1, SMALL, whole)}
    epoch = whole // SMALL
    budget = epoch * seconds[SMALL]
    heavy, single, once, curves = [], [], [], {}
    seeds = trial.size(3, 10)
    for i in range(seeds):
        trial.tell(f"seed {i + 1} of {seeds}")
        job = digits_job(seed=trial.seed * seeds + i)
        for b in (1, SMALL, whole):
            rates = RATES.get(b, RATES[-1])
            curves[b] = best_run(job, b, rates, max(round(budget / seconds[b]), 1))
        lowest = {b: min(curve.values) for b, curve in curves.items()}
        heavy.append(lowest[whole] / lowest[SMALL])
        single.append(lowest[1] / lowest[SMALL])
        first = best_run(job, whole, RATES[-1], 1)
        once.append(first.values[0] / lowest[SMALL])
    checks = (
        at_least(
            "held-out loss after one update of N examples over that after an epoch of "
            "32",
            3.0,
            mean_of(once),
            wrong={"progress by examples": 1.0},
        ),
        at_least(
            "the same in equal CPU time, b = N over b = 32",
            1.5,
            mean_of(heavy),
            wrong={"progress by time": 1.0},
        ),
        at_least(
            "the same in equal CPU time, b = 1 over b = 32",
            2.0,
            mean_of(single),
            wrong={"the more updates the better": 1 / 2.0},
        ),
    )
    chart = plot(
        [
            Series(
                f"b = {b}" if b < whole else "b = N",
                [s * seconds[b] for s in curve.steps],
                curve.values,
                "line" if len(curve.steps) > 1 else "points",
            )
            for b, curve in curves.items()
        ],
        "CPU seconds",
        "held-out loss",
        log="y",
    )
    return Seen(
        checks,
        (
            Chart(
                "One seed, each batch at its best rate, until the CPU time of an epoch "
                "at b = 32 is spent.",
                "一个种子，每种批量用最好的学习率，直到用完 b = 32 一个周期的 CPU 时"
                "间。",
                chart,
            ),
        ),
    )


CLAIM = Claim(
    id="many-small-updates",
    texts=(
        "2 实用主义者的选择: many small updates beat a heavy one in equal wall time",
        "1 三种导航流派: waiting for all examples before one step is expensive",
        "2 实用主义者的选择: mini-batches hit the sweet spot of hardware",
    ),
    theory="progress goes by updates until their noise matters: S = N (1 + B_crit / b)",
    verdict="holds",
    seconds=6,
    power="means of 3 seeds, every batch at its best rate; 10 with --full",
    en=Words(
        title="Many small updates beat one heavy update in equal time",
        claimed="In the same time, many updates by small but fairly exact gradients "
        "come nearer to a good solution than one slow update by the exact one.",
        assumed="Far from the end of training, with a batch below the critical one, "
        "and each batch at its own best rate.",
        seen="On real digits an epoch at b = 32 is set against one update with all "
        "examples, and against as much CPU time spent on whole batches or on single "
        "examples. It is ahead of all three: whole batches are too few, single ones "
        "too noisy and too slow.",
    ),
    zh=Words(
        title="同样的时间里，多次小更新胜过一次重更新",
        claimed="在同样的时间里，用小而相当准确的梯度更新许多次，比用精确梯度慢慢更新一"
        "次更接近好的解。",
        assumed="训练远未结束，批量小于临界批量，每种批量用各自最好的学习率。",
        seen="在真实数字图像上，比较 b = 32 的一个周期、用全部样本的一次更新，以及把同"
        "样的 CPU 时间花在全批量或单个样本上：它领先于三者。全批量更新太少，单个样本噪"
        "声太大也太慢。",
    ),
    run=run,
)
