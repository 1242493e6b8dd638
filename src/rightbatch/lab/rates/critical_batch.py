"""Beyond the critical batch, doubling it no longer halves the steps."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

from rightbatch.cluster.published import PUBLISHED
from rightbatch.core.estimate import Estimate
from rightbatch.fit.steps_law import StepsLaw, fit_steps
from rightbatch.lab.check import at_least, equals
from rightbatch.lab.claim import Chart, Claim, Seen, Trial, Words
from rightbatch.lab.plots import Series, bars, plot
from rightbatch.lab.rates.small_net import seeds_of, small_job, steps_to

Array = Float[np.ndarray, "..."]
CURVATURES = 1 / np.arange(1, 201)  # of the quadratic; noise as large in each direction
GOAL = 0.1  # of the quadratic's loss
BATCHES = (4, 8, 16, 32, 64, 128, 256, 512)
# The digits' best rate: in proportion, up to what the net can bear [measured].
RATE_OF_EXAMPLE, LARGEST_RATE, TARGET = 0.05, 0.8, 0.4


def quadratic_steps(b: float, lr: float) -> float:
    """Steps of SGD on the noisy quadratic to the goal, by its exact second moments.

    Each has mean square ``v``, from 1, which an update takes to
    ``(1 - lr k)^2 v + lr^2 k / b``; infinite where the noise floor is above the goal.
    """
    shrink = (1 - lr * CURVATURES) ** 2
    floor = lr**2 * CURVATURES / b / (1 - shrink)

    def loss(steps: float) -> float:
        moments = floor + shrink**steps * (1 - floor)
        return float(CURVATURES @ moments) / 2

    if loss(math.inf) >= GOAL:
        return math.inf
    low, high = 0.0, 1.0
    while loss(high) > GOAL:
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if loss(middle) <= GOAL else (middle, high)
    return high


def best_steps(b: float, rates: int = 60) -> float:
    """The fewest steps over learning rates."""
    return min(quadratic_steps(b, lr) for lr in np.geomspace(1e-3, 1.95, rates))


def by_doubling(steps: dict[float, float], b: float) -> float:
    """Steps at twice the batch over those at b."""
    return steps[2 * b] / steps[b]


def digit_runs(trial: Trial) -> dict[int, list[float]]:
    """Steps of the small net to the target, by batch, at near its best rate."""
    runs = {}
    for b in BATCHES:
        trial.tell(f"b = {b}")
        lr = min(RATE_OF_EXAMPLE * b, LARGEST_RATE)
        runs[b] = [
            steps_to(small_job(seed), TARGET, batch_size=b, lr=lr, most=1500)
            for seed in seeds_of(trial, 3, 8)
        ]
    return runs


def published() -> dict[str, Estimate]:
    """Critical batches that others measured, fitted by the product."""
    return {
        p.workload: Estimate(value=p.critical_batch, low=p.low, high=p.high)
        for p in PUBLISHED
    }


def run(trial: Trial) -> Seen:
    """The exact quadratic, and real digits."""
    sizes = [float(b) for b in 2.0 ** np.arange(-1, 13)]
    exact = {b: best_steps(b) for b in sizes}
    oracle = fit_steps(sizes, list(exact.values()))
    runs = digit_runs(trial)
    pairs = [(b, s) for b, all_steps in runs.items() for s in all_steps]
    law = fit_steps([b for b, _ in pairs], [s for _, s in pairs])
    mean = {float(b): float(np.mean(s)) for b, s in runs.items()}
    examples = {b: b * s for b, s in exact.items()}
    least = oracle.min_steps.value * oracle.critical_batch.value
    # Where examples are 1.2 and 2 times their least, read off the exact curve.
    overheads = [examples[b] / least for b in sizes]
    fifth, twice = (
        math.exp(np.interp(math.log(at), np.log(overheads), np.log(sizes)))
        for at in (1.2, 2.0)
    )
    gains = [law_ratio(p.critical_batch, p.largest) for p in PUBLISHED]
    checks = (
        at_least(
            "digits: steps at b = 512 over b = 256, by doubling",
            0.8,
            by_doubling(mean, 256.0),
            wrong={"doubling halves": 0.5, "seen from 4 to 8": by_doubling(mean, 4.0)},
        ),
        equals(
            "quadratic: steps at b = 64 over b = 32, by the law's one formula",
            law_ratio(oracle.critical_batch.value, 32.0),
            by_doubling(exact, 32.0),
            within=0.1,
            wrong={"doubling halves": 0.5, "doubling does nothing": 1.0},
        ),
        at_least(
            "published: mean steps at twice the largest batch seen, by their laws",
            0.6,
            float(np.mean(gains)),
            wrong={"doubling halves": 0.5},
        ),
        equals(
            "quadratic: batch of twice the examples over that of 20 % more",
            5.0,
            twice / fifth,
            within=0.25,
            wrong={"one critical batch": 1.0},
        ),
        equals(
            "digits: steps at b = 8 over b = 4, far below the critical batch",
            law_ratio(law.critical_batch.value, 4.0),
            by_doubling(mean, 4.0),
            within=0.2,
            part="limit",
            wrong={"doubling does nothing": 1.0},
        ),
    )
    return Seen(checks, (digits_chart(runs, law), published_chart()))


def law_ratio(critical: float, b: float) -> float:
    """Steps at twice the batch over those at b: (1 + C / 2b) / (1 + C / b)."""
    return (1 + critical / (2 * b)) / (1 + critical / b)


def digits_chart(runs: dict[int, list[float]], law: StepsLaw) -> Chart:
    """Every run, the law fitted to them, and perfect halving."""
    spread = [
        Estimate(value=float(np.mean(s)), low=min(s), high=max(s))
        for s in runs.values()
    ]
    first = spread[0].value * BATCHES[0]
    spec = plot(
        [
            Series("digits, range of seeds", BATCHES, spread, "points"),
            Series("law, fitted", BATCHES, [law.predict(b) for b in BATCHES], "line"),
            Series("doubling halves", BATCHES, [first / b for b in BATCHES], "dashed"),
        ],
        "batch size b",
        "steps to the target",
        log="xy",
    )
    return Chart(
        "Steps fall as the batch grows, and stop falling beyond the critical one.",
        "步数随批量增大而下降，过了临界批量就不再下降。",
        spec,
    )


def published_chart() -> Chart:
    """Critical batches of published runs."""
    return Chart(
        "Critical batches of published runs (MLPerf, Zhang et al. 2024), refitted.",
        "公开训练结果（MLPerf、Zhang 等 2024）的临界批量，重新拟合。",
        bars(published(), "critical batch, in the workload's own unit", log=True),
    )


CLAIM = Claim(
    id="critical-batch",
    texts=(
        "5 关于“快”的误区: doubling the batch does not save half of the steps; beyond "
        "a critical point nothing",
        "1 颤抖的指南针：梯度噪声与稳定性: a larger batch needs fewer iterations",
    ),
    papers=(
        "McCandlish et al. 2018, arXiv:1812.06162",
        "Zhang et al. 2024, arXiv:2410.21676 (20 % more examples)",
    ),
    theory="S(b) = S_min (1 + B_crit / b); examples 1.2 times their least at B_crit / "
    "5",
    verdict="holds if",
    seconds=4,
    power="three seeds a batch: steps to about 8 %, halving and not halving are a "
    "factor 1.7 apart; --full has eight",
    en=Words(
        title="Doubling the batch stops halving the steps",
        claimed="Twice the batch usually does not get there in half of the steps, and "
        "beyond a critical size more examples a step are wasted.",
        assumed="Each batch has near its best learning rate, and all runs go to one "
        "loss. Where papers define the critical batch otherwise, its number is "
        "another.",
        seen="On a quadratic whose steps are computed exactly, on real digits and on "
        "published runs the steps follow one law with two numbers. Well below the "
        "critical batch doubling does nearly halve them; well above it does nothing.",
        answer="holds if the batch is not far below the critical one; there doubling "
        "it does nearly halve the steps.",
    ),
    zh=Words(
        title="批量加倍不再使步数减半",
        claimed="批量加倍通常不能让步数减半；超过某个临界大小后，每步更多的样本只是浪费"
        "。",
        assumed="每个批量都用接近最佳的学习率，所有训练到同一损失为止。若论文对临界批量"
        "的定义不同，数值也就不同。",
        seen="在可精确计算步数的二次函数、真实数字图像和公开训练结果上，步数都遵循同一"
        "条两参数规律。远低于临界批量时，加倍几乎使步数减半；远高于它时，加倍毫无作用"
        "。",
        answer="成立的条件是：批量不远低于临界批量；远低于时，加倍几乎能使步数减半。",
    ),
    run=run,
)
