"""The square-root rule holds the variance of one update, and nothing else."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import nn

from rightbatch.core.estimate import Estimate
from rightbatch.lab.check import equals
from rightbatch.lab.claim import Chart, Claim, Seen, Trial, Words
from rightbatch.lab.plots import Series, plot
from rightbatch.lab.rates.small_net import small_job
from rightbatch.lab.rates.walks import stationary_variance, timetable, walked
from rightbatch.lab.samples import mean_of
from rightbatch.lab.training_runs import batch_gradient, started, trained
from rightbatch.schedules.scaling import Rule, scaling_for
from rightbatch.schedules.schedule import Constant

FIRST, BATCHES = 4, (4, 16, 64, 256)
RATIO = 16  # of batches, where the epoch and the temperature are looked at
EXAMPLES = 1408  # of an epoch: 176 batches of 8, 11 of 128
SMALL_RATE = 0.001  # so that an epoch hardly moves the gradient [measured]


def lr_factor(b: int, rule: Rule) -> float:
    """The product's factor on SGD's rate from the first batch to b."""
    return scaling_for("sgd", FIRST, b, rule=rule).lr


def moved_in_an_epoch(seed: int, batch_size: int, lr: float) -> float:
    """Distance between the weights before and after one epoch on the digits."""
    job = small_job(seed)
    job = dataclasses.replace(job, data=tuple(part[:EXAMPLES] for part in job.data))
    with started(job) as run:
        before = nn.utils.parameters_to_vector(run.network.parameters()).detach()

    def distance(model: nn.Module) -> float:
        return float(
            (nn.utils.parameters_to_vector(model.parameters()) - before).norm()
        )

    steps = EXAMPLES // batch_size
    curve = trained(
        job, batch_size=batch_size, lr=lr, steps=steps, every=steps, look=distance
    )
    return curve.values[-1]


def variance_of_w(batch_size: int, lr: float, trial: Trial) -> Estimate:
    """At rest on a quadratic of curvature 1, examples' noise 64."""
    table = timetable(Constant(batch_size), lr=lr, examples=600 * batch_size)
    chains = trial.size(4000, 40_000)
    walk = walked(table, noise=64.0, chains=chains, seed=trial.seed + batch_size)
    return walk.late(walk.variance, slice(-200, None))


def run(trial: Trial) -> Seen:
    """Update variance on real gradients; drift of an epoch; variance at rest."""
    draws = trial.size(200, 1000)
    generator = torch.Generator().manual_seed(trial.seed)
    job = small_job(trial.seed)
    variances: list[Estimate] = []
    with started(job) as state:
        whole = batch_gradient(state, torch.arange(job.length))
        for b in BATCHES:
            trial.tell(f"b = {b}")
            squares = []
            for _ in range(draws):
                rows = torch.randint(job.length, (b,), generator=generator)
                noise = batch_gradient(state, rows) - whole
                squares.append(float(noise.square().sum()))
            variances.append(mean_of(squares))
    first = variances[0].value

    def jitter(rule: Rule) -> list[Estimate]:
        factors = [lr_factor(b, rule) for b in BATCHES]
        return [v.scale(f * f / first) for v, f in zip(variances, factors, strict=True)]

    root, linear = jitter("sqrt"), jitter("linear")
    growth = BATCHES[-1] / BATCHES[0]
    drift = moved_in_an_epoch(trial.seed, 8 * RATIO, SMALL_RATE * math.sqrt(RATIO))
    drift /= moved_in_an_epoch(trial.seed, 8, SMALL_RATE)
    rest = variance_of_w(RATIO, 0.02 * math.sqrt(RATIO), trial)
    rest = rest.scale(1 / variance_of_w(1, 0.02, trial).value)
    rest_theory = stationary_variance(0.02 * math.sqrt(RATIO), RATIO, 64.0)
    rest_theory /= stationary_variance(0.02, 1, 64.0)
    checks = (
        equals(
            "variance of an update at 64 times the batch, root rule",
            1.0,
            root[-1],
            within=0.2,
            wrong={"linear rule": growth, "rate kept": 1 / growth},
        ),
        equals(
            "way of an epoch at 16 times the batch, root rule",
            RATIO**-0.5,
            drift,
            within=0.15,
            part="limit",
            wrong={"also held": 1.0, "rate kept": 1 / RATIO},
        ),
        equals(
            "variance at rest at 16 times the batch, root rule",
            rest_theory,
            rest,
            within=0.15,
            part="limit",
            wrong={"also held": 1.0, "rate kept": 1 / RATIO},
        ),
    )
    chart = plot(
        [
            Series("root rule", BATCHES, root, "points"),
            Series("held", BATCHES, [1.0] * len(BATCHES), "dashed"),
            Series("linear rule", BATCHES, linear, "points"),
            Series("b / 4", BATCHES, [b / FIRST for b in BATCHES], "dashed"),
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
    texts=(
        "1 超参数的交织之舞: b / k goes with lr / sqrt(k): update variance constant",
    ),
    papers=(
        "Krizhevsky 2014, arXiv:1404.5997",
        "Hoffer et al. 2017, arXiv:1705.08741",
    ),
    theory="Var(update) = lr^2 tr Sigma / b; drift per epoch ~ lr / b; T ~ lr / b",
    verdict="holds if",
    seconds=4,
    power="200 batches of each size: the variance to about 5 %, wrong rules are off by "
    "a factor 4 and more; --full draws 1000",
    en=Words(
        title="The square-root rule keeps the jitter of one update",
        claimed="To keep the shaking of the path constant, change the learning rate by "
        "the square root of the factor on the batch.",
        assumed="Shaking means the variance of one single update, and the gradients of "
        "a batch are those of independent examples.",
        seen="Batches of real digits are drawn and the variance of the update is "
        "constant under this rule. But an epoch then has fewer updates of which each "
        "is not as much longer: it moves less, and the weights come to rest colder.",
        answer="holds if the jitter of a single update is meant; neither the progress "
        "of an epoch nor the temperature stays.",
    ),
    zh=Words(
        title="平方根规则保持单次更新的抖动",
        claimed="要让行进的晃动程度不变，批量变为几倍，学习率就应变为几倍的平方根。",
        assumed="“晃动”指单次更新的方差；一个批量的梯度来自相互独立的样本。",
        seen="在真实数字图像上抽取各种大小的批量，按此规则更新的方差确实不变。但每个"
        "epoch 的更新次数变少，步长却没有同比变大：走的路更短，静止时也更“冷”。",
        answer="成立的条件是：所指的是单次更新的抖动；每个 epoch 的进展和温度都不会保持不变。",
    ),
    run=run,
)
