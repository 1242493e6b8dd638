"""Many small, fairly exact updates get further than one heavy one in equal time."""

from __future__ import annotations

import statistics

from rightbatch.job.job import Job
from rightbatch.lab.check import at_least
from rightbatch.lab.claim import Chart, Claim, Seen, Trial, Words
from rightbatch.lab.cost.cpu_time import cpu_seconds
from rightbatch.lab.plots import Series, plot
from rightbatch.lab.samples import mean_of
from rightbatch.lab.training_runs import Curve, digits_job, started, trained

SMALL = 32
# The best counts; they hold the best of a wider grid [measured].
RATES = {"b = 1": (0.01, 0.03), "b = 32": (0.1, 0.2), "b = N": (0.3, 0.5, 0.8)}


def best_run(job: Job, batch: int, rates: tuple[float, ...], steps: int) -> Curve:
    """Of one run at each rate that with the lowest held-out loss at its end."""
    options = {"batch_size": batch, "steps": steps, "every": max(steps // 8, 1)}
    curves = [trained(job, lr=lr, **options) for lr in rates]
    return min(curves, key=lambda curve: curve.values[-1])


def run(trial: Trial) -> Seen:
    """An epoch at b = 32, its CPU time at b = N and at b = 1; and one update."""
    job, seeds = digits_job(seed=trial.seed), trial.size(3, 10)
    sizes = dict(zip(RATES, (1, SMALL, job.length), strict=True))
    trial.tell("timing")
    with started(job) as state:
        rounds = cpu_seconds([(state, b, b) for b in sizes.values()], 5)
    step_s = dict(zip(RATES, map(statistics.median, rounds), strict=True))
    budget_s = job.length // SMALL * step_s["b = 32"]
    over: dict[str, list[float]] = {"b = 1": [], "b = N": [], "one update": []}
    curves: dict[str, Curve] = {}
    for i in range(seeds):
        trial.tell(f"seed {i + 1} of {seeds}")
        job = digits_job(seed=trial.seed * seeds + i)
        for name, rates in RATES.items():
            steps = max(round(budget_s / step_s[name]), 1)
            curves[name] = best_run(job, sizes[name], rates, steps)
        once = best_run(job, job.length, RATES["b = N"], 1)
        for name, curve in (curves | {"one update": once}).items():
            if name in over:
                over[name].append(curve.values[-1] / curves["b = 32"].values[-1])
    once, whole, single = (mean_of(over[n]) for n in ("one update", "b = N", "b = 1"))
    checks = (  # held-out loss over that by an epoch at b = 32
        at_least("loss: one update / b = 32", 3.0, once, wrong={"by examples": 1.0}),
        at_least("b = N, equal time / 32", 1.3, whole, wrong={"by time": 1.0}),
        at_least("b = 1, equal time / 32", 2.0, single, wrong={"no noise": 1.0}),
    )
    series = [
        Series(name, [n * step_s[name] for n in curve.steps], curve.values)
        for name, curve in curves.items()
    ]
    chart = plot(series, "CPU seconds", "held-out loss", log="y")
    caption = "One seed, the best rate of each, for the CPU time of an epoch at b = 32."
    zh = "一个种子，各用最好的学习率，CPU 时间同为 b = 32 的一个周期。"
    return Seen(checks, (Chart(caption, zh, chart),))


CLAIM = Claim(
    id="many-small-updates",
    texts=(
        "2 实用主义者的选择: many small updates beat a heavy one in equal wall time",
        "1 三种导航流派: waiting for all examples before one step is expensive",
    ),
    theory="progress goes by updates while S = N (1 + B_crit / b) is far from N",
    verdict="holds",
    seconds=5,
    power="means of 3 seeds, every batch at its best rate; 10 with --full",
    en=Words(
        title="Many small updates beat one heavy update in equal time",
        claimed="In the same time many updates by small but fairly exact gradients "
        "come nearer to a good solution than a slow one by the exact gradient.",
        assumed="Training is far from its end, the batch below the critical one, and "
        "each batch has its own best rate.",
        seen="On real digits an epoch at b = 32 is ahead of one update with all "
        "examples, and of equal CPU time spent on whole batches or on single examples.",
    ),
    zh=Words(
        title="同样的时间里，多次小更新胜过一次重更新",
        claimed="同样的时间里，小而相当准确的多次更新比一次精确的更新走得更远。",
        assumed="训练远未结束，批量小于临界批量，各用自己最好的学习率。",
        seen="在真实数字图像上，b = 32 的一个周期领先于用全部样本的一次更新，也领先于把"
        "同样的 CPU 时间花在全批量或单个样本上。",
    ),
    run=run,
)
