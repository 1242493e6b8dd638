"""The square-root rule holds the variance of one update, and nothing else."""

from __future__ import annotations

import math

import torch

from rightbatch.core.estimate import Estimate
from rightbatch.lab.check import equals
from rightbatch.lab.claim import Chart, Claim, Seen, Trial, Words
from rightbatch.lab.plots import Series, plot
from rightbatch.lab.rates.small_net import small_job
from rightbatch.lab.rates.walks import rest_variance, variance_at_rest
from rightbatch.lab.sampling.variance_over_b import gradient_variance
from rightbatch.lab.training_runs import started
from rightbatch.schedules.scaling import Rule, scaling_for

BATCHES, RATIO = (4, 16, 64, 256), 16  # RATIO: where the rest is looked at


def run(trial: Trial) -> Seen:
    """Update variance on real gradients; variance at rest on a quadratic."""
    random, draws = torch.Generator().manual_seed(trial.seed), trial.size(200, 1000)
    with started(small_job(trial.seed)) as state:
        variances = [gradient_variance(state, b, draws, random) for b in BATCHES]

    def jitter(rule: Rule) -> list[Estimate]:
        factors = [scaling_for("sgd", BATCHES[0], b, rule=rule).lr for b in BATCHES]
        first = variances[0].value
        return [v.scale(f * f / first) for v, f in zip(variances, factors, strict=True)]

    root, linear, r = jitter("sqrt"), jitter("linear"), math.sqrt(RATIO)
    chains, seed = trial.size(4000, 40_000), 2 * trial.seed
    rest = variance_at_rest(RATIO, 0.02 * r, noise=64.0, chains=chains, seed=seed)
    first = variance_at_rest(1, 0.02, noise=64.0, chains=chains, seed=seed + 1)
    rest = rest.scale(1 / first.value)
    colder = rest_variance(RATIO, 0.02 * r, 64.0) / rest_variance(1, 0.02, 64.0)
    update, other = {"linear": 64.0, "rate kept": 1 / 64}, {"held": 1.0, "1/b": 1 / 16}
    checks = (
        equals("update variance, 64 b", 1.0, root[-1], within=0.2, wrong=update),
        equals(
            "variance at rest, 16 b",
            colder,
            rest,
            within=0.15,
            part="limit",
            wrong=other,
        ),
    )
    chart = plot(
        [
            Series("root rule", BATCHES, root, "points"),
            Series("held", BATCHES, [1.0] * len(BATCHES), "dashed"),
            Series("linear rule", BATCHES, linear, "points"),
            Series("b / 4", BATCHES, [b / BATCHES[0] for b in BATCHES], "dashed"),
        ],
        "batch size b",
        "variance of one update, over that at b = 4",
        log="xy",
    )
    caption = "One update on real digits: the root rule keeps its jitter, linear grows."
    caption_zh = "真实数字图像上的一次更新：平方根规则保持抖动不变，线性规则使它增大。"
    return Seen(checks, (Chart(caption, caption_zh, chart),))


CLAIM = Claim(
    id="root-rule",
    texts=("1 超参数的交织之舞: b / k goes with lr / sqrt(k): update variance stays",),
    papers=("Krizhevsky 2014, arXiv:1404.5997", "Hoffer et al. 2017, arXiv:1705.08741"),
    theory="Var(update) = lr^2 tr Sigma / b; drift per epoch ~ lr / b; T ~ lr / b",
    verdict="holds if",
    seconds=3,
    power="200 batches a size: variances to 5 %, wrong rules are 4 x off; --full: 1000",
    en=Words(
        title="The square-root rule keeps the jitter of one update",
        claimed="To keep the shaking of the path, change the rate by the root of the "
        "batch's factor.",
        assumed="Shaking is the variance of one update; examples are independent.",
        seen="Over batches of real digits the variance of the update stays; but on a "
        "quadratic the weights come to rest colder at the larger batch.",
        answer="the jitter of one update is meant; at a larger batch temperature and "
        "progress of an epoch fall",
    ),
    zh=Words(
        title="平方根规则保持单次更新的抖动",
        claimed="要让行进的晃动程度不变，批量变为几倍，学习率就变为几倍的平方根。",
        assumed="“晃动”指单次更新的方差；样本相互独立。",
        seen="在真实数字图像上，更新的方差确实不变；但在二次函数上，批量越大，权重静止"
        "时越“冷”。",
        answer="所指的是单次更新的抖动；批量越大，温度和每个轮次的进展越低",
    ),
    run=run,
)
