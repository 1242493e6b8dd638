"""The best batch is sqrt(C tau_f / (N tau_d)), and a range around it is as good."""

from __future__ import annotations

import math

import numpy as np

from rightbatch.core.estimate import Estimate
from rightbatch.fit.step_time import fit_time
from rightbatch.fit.steps_law import fit_steps
from rightbatch.lab.check import at_most, equals
from rightbatch.lab.claim import Chart, Claim, Seen, Trial, Words
from rightbatch.lab.cost.cpu_time import cpu_seconds, timed
from rightbatch.lab.plots import Series, plot
from rightbatch.lab.training_runs import digits_job, started, trained

FIXED, EXAMPLE = 100.0, 1.0  # tau_f and tau_d of the quadratic, any unit
GOAL = 0.1  # its excess loss, from 2.9
HESSIAN = 1 / np.arange(1, 201)  # of the quadratic; its noise has the same covariance
RATES = np.geomspace(0.02, 1.95, 60)[:, None]
# Of digits: the rates tried at every batch, which hold the best [measured].
TRIED = {4: (0.02,), 16: (0.06, 0.12), 64: (0.12, 0.24), 256: (0.24,), 1024: (0.24,)}
LOSS = 0.4  # held-out, from 2.3


def steps_on_quadratic(batch: float) -> float:
    """Steps of SGD to the goal at the best constant rate, exactly.

    The mean square of each coordinate follows m <- (1 - lr h)^2 m + lr^2 h / b (Zhang
    et al. 2019, arXiv:1907.04164); between two steps the logarithm is interpolated.
    """
    shrink, noise = (1 - RATES * HESSIAN) ** 2, RATES**2 * HESSIAN / batch
    square, step = np.ones((len(RATES), len(HESSIAN))), 0
    before = 0.5 * square @ HESSIAN
    while True:
        square = shrink * square + noise
        loss = 0.5 * square @ HESSIAN
        done = loss <= GOAL
        if done.any():
            parts = np.log(before[done] / GOAL) / np.log(before[done] / loss[done])
            return step + float(parts.min())
        before, step = loss, step + 1


def digits_times(trial: Trial) -> tuple[float, dict[int, Estimate]]:
    """The formula's batch for digits, and CPU seconds to the loss by batch."""
    job, sizes = digits_job(seed=trial.seed), list(TRIED)

    def steps(batch: int, lr: float) -> float:
        trial.tell(f"digits, b = {batch}")
        options = {"batch_size": batch, "steps": 600, "every": max(1, 16 // batch)}
        curve = trained(job, lr=lr, stop=lambda value: value <= LOSS, **options)
        return curve.steps[-1] if curve.values[-1] <= LOSS else math.inf

    counts = [min(steps(b, lr) for lr in rates) for b, rates in TRIED.items()]
    with started(job) as state:
        seconds = cpu_seconds([(state, b, b) for b in sizes], trial.size(5, 25))
    points = [timed(b, s) for b, s in zip(sizes, seconds, strict=True)]
    critical = fit_steps(sizes, counts).critical_batch.value  # C / N
    best = math.sqrt(critical * fit_time(points).half_batch.value)
    pairs = zip(points, counts, strict=True)
    return best, {p.micro_batch: p.step_time_s.scale(n) for p, n in pairs}


def run(trial: Trial) -> Seen:
    """The formula on a quadratic without chance, then on real digits."""
    trial.tell("the quadratic")
    sizes = [2.0**i for i in trial.size(range(1, 12), range(12))]
    steps = [steps_on_quadratic(b) for b in sizes]
    law = fit_steps(sizes, steps)
    n, c = law.min_steps.value, law.min_steps.value * law.critical_batch.value
    best = math.sqrt(c * FIXED / (n * EXAMPLE))
    least = (math.sqrt(FIXED * n) + math.sqrt(EXAMPLE * c)) ** 2
    times = [(FIXED + EXAMPLE * b) * s for b, s in zip(sizes, steps, strict=True)]
    exact = [time / least for time in times]
    at_best = (FIXED + EXAMPLE * best) * steps_on_quadratic(best) / least
    best_here, digits = digits_times(trial)
    fastest = min(total.value for total in digits.values())
    over = {b: total.value / fastest for b, total in digits.items()}
    nearest = min(over, key=lambda b: abs(math.log(b / best_here)))
    top = min(exact)
    low, end, alone = at_best / top, exact[0] / top, (FIXED * n + EXAMPLE * c) / least
    here, small, large = over[nearest], over[4], over[1024]
    checks = (
        at_most("time at b* / least", 1.02, low, wrong={"b = 2": end}),
        equals("least time / T*", 1.0, top, within=0.1, wrong={"N tau + C tau": alone}),
        at_most("digits, at b* / least", 1.5, here, wrong={"4": small, "1024": large}),
    )
    relative = [total.scale(1 / fastest) for total in digits.values()]
    series = [
        Series("quadratic", sizes, [t / min(exact) for t in exact], "line"),
        Series("digits", list(digits), relative, "points"),
        Series("formula, quadratic", [best, best], [1.0, 10.0], "dashed"),
        Series("formula, digits", [best_here, best_here], [1.0, 10.0], "dashed"),
    ]
    chart = plot(series, "batch size b", "total time over the least", log="xy")
    caption = "A wide flat bottom, with the formula in the middle of each."
    zh = "谷底宽而平，公式恰在各自的中间。"
    return Seen(checks, (Chart(caption, zh, chart),))


CLAIM = Claim(
    id="best-batch",
    texts=(
        "3 实践中的权衡: b_opt = sqrt(C_var tau_f / (N_iter tau_d))",
        "1 最佳步调: there is a batch of least total time",
        "2 实用主义者的选择: the optimum balances cost per sample and per update",
    ),
    papers=("McCandlish et al. 2018, arXiv:1812.06162",),
    theory="b* = sqrt(C tau_f / (N tau_d)); T* = (sqrt(tau_f N) + sqrt(tau_d C))^2",
    verdict="holds",
    seconds=5,
    power="the quadratic is exact; digits tell a factor of 1.5; --full times longer",
    en=Words(
        title="There is a best batch, and a formula for it",
        claimed="Steps fall as N + C / b and a step takes tau_f + tau_d b, so total "
        "time is least at the root of C tau_f over N tau_d.",
        assumed="Both laws hold, and each batch has its own best rate. The bottom is "
        "flat: twice or half the best is nearly as good.",
        seen="On an exactly followed quadratic the formula's batch is as fast as any. "
        "On real digits, by steps to a loss and CPU time, the size nearest to it is "
        "close to the fastest, the ends are not.",
    ),
    zh=Words(
        title="存在最佳批量，而且有公式",
        claimed="步数为 N + C / b，每步 tau_f + tau_d b，总时间在 b* 处最小。",
        assumed="两条定律成立，各用最好的学习率。谷底很平：差一倍也几乎一样好。",
        seen="在可精确推算的二次函数上，公式的批量与最快者不相上下。在真实数字图像上，"
        "按步数与 CPU 时间，最接近公式的批量接近最快，两端则不然。",
    ),
    run=run,
)
