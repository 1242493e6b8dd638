"""The linear rule holds the temperature and the path per example, up to a limit."""

from __future__ import annotations

import math

from rightbatch.core.estimate import Estimate
from rightbatch.lab.check import at_least, equals
from rightbatch.lab.claim import Chart, Claim, Seen, Trial, Words
from rightbatch.lab.plots import Series, plot
from rightbatch.lab.rates.small_net import seeds_of, small_job, training_loss
from rightbatch.lab.rates.walks import stationary_variance, timetable, walked
from rightbatch.lab.samples import mean_of
from rightbatch.lab.training_runs import Curve, trained
from rightbatch.schedules.schedule import Constant

FIRST, LR = 8, 0.05
NOISE = 64.0  # of the walk's examples; its curvature is 1
LOOKS = 256  # examples between two looks, and of the largest batch's two
# Batch and factor on the rate by name.
WAYS = {
    "b = 8": (8, 1.0),
    "b = 32, linear": (32, 4.0),
    "b = 32, root": (32, 2.0),
    "b = 32, rate kept": (32, 1.0),
    "b = 256, linear": (256, 32.0),
}


def path(seed: int, batch_size: int, lr: float, examples: int) -> Curve:
    """Training loss on the digits, looked at every 256 examples."""
    job = small_job(seed)
    return trained(
        job,
        batch_size=batch_size,
        lr=lr,
        steps=examples // batch_size,
        every=LOOKS // batch_size,
        look=training_loss(job),
    )


def variance_ratio(lr: float, ratio: int, trial: Trial) -> Estimate:
    """Var w at rest at batch and rate both times ``ratio``, over that before."""
    chains = trial.size(4000, 40_000)
    seen = []
    for factor in (ratio, 1):
        steps = math.ceil(10 / (lr * factor)) + 200
        table = timetable(Constant(factor), lr=lr * factor, examples=steps * factor)
        walk = walked(table, noise=NOISE, chains=chains, seed=trial.seed + factor)
        seen.append(walk.late(walk.variance, slice(-200, None)))
    return seen[0].scale(1 / seen[1].value)


def run(trial: Trial) -> Seen:
    """The variance at rest on a quadratic; whole paths on real digits."""
    seeds = seeds_of(trial, 2, 6)
    examples = 3 * 1437 // LOOKS * LOOKS
    curves: dict[str, list[Curve]] = {}
    for name, (b, factor) in WAYS.items():
        trial.tell(name)
        curves[name] = [path(s, b, LR * factor, examples) for s in seeds]

    def gap(name: str) -> Estimate:
        """Mean log of the last loss over that of b = 8 with the same seed."""
        pairs = zip(curves[name], curves["b = 8"], strict=True)
        return mean_of([math.log(a.values[-1] / b.values[-1]) for a, b in pairs])

    gaps = {name: gap(name) for name in WAYS if name != "b = 8"}
    cold, hot = variance_ratio(0.01, 8, trial), variance_ratio(0.1, 16, trial)
    hot_theory = stationary_variance(1.6, 16, NOISE) / stationary_variance(
        0.1, 1, NOISE
    )
    checks = (
        equals(
            "variance at rest at 8 times batch and rate, lr k at most 0.08",
            1.0,
            cold,
            within=0.15,
            wrong={"root rule": 8**-0.5, "rate kept": 1 / 8},
        ),
        equals(
            "log of the loss on digits at b = 32 over b = 8, linear",
            0.0,
            gaps["b = 32, linear"],
            margin=0.25,
            wrong={
                "root rule": gaps["b = 32, root"].value,
                "rate kept": gaps["b = 32, rate kept"].value,
            },
        ),
        equals(
            "variance at rest at 16 times both, lr k from 0.1 to 1.6",
            hot_theory,
            hot,
            within=0.15,
            part="limit",
            wrong={"still held": 1.0},
        ),
        at_least(
            "log of the loss on digits at b = 256 over b = 8, linear",
            0.5,
            gaps["b = 256, linear"],
            part="limit",
            wrong={"as at b = 32": gaps["b = 32, linear"].value},
        ),
    )
    lines = [
        Series(
            name, runs[0].examples, runs[0].values, "dashed" if "8" in name else "line"
        )
        for name, runs in curves.items()
    ]
    chart = plot(lines, "examples seen", "training loss", log="y")
    caption = "One seed: at four times batch and rate the path is the same per example."
    caption_zh = (
        "同一随机种子：批量和学习率同乘 4，按样本数计的路径相同；乘 32 则失效。"
    )
    return Seen(checks, (Chart(caption, caption_zh, chart),))


CLAIM = Claim(
    id="linear-rule",
    texts=(
        "2 现代前沿：微调引擎: batch times k, learning rate times k: T is constant",
    ),
    papers=(
        "Goyal et al. 2017, arXiv:1706.02677",
        "Smith et al. 2018, arXiv:1711.00489",
    ),
    theory="T = lr sigma^2 / (2 b); Var w = lr sigma^2 / (b k (2 - lr k))",
    verdict="holds if",
    seconds=4,
    power="two seeds of three epochs: losses a quarter apart are told apart, wrong rules "
    "are a factor 2 and more off; --full has six seeds",
    en=Words(
        title="Batch and rate times the same factor: the same path",
        claimed="Multiply the batch by k and the learning rate too, and the temperature "
        "of training, and with it the whole dynamics, stay as they are.",
        assumed="Plain SGD, a rate far from the edge of stability (lr times curvature "
        "well below 2) and a batch well below the critical one.",
        seen="On a quadratic the weights come to rest equally wide; on real digits four "
        "times batch and rate draws the same loss curve, while the root rule and an "
        "unchanged rate lag. Far beyond, weights spread more and the loss stays high.",
        answer="holds if lr times the largest curvature stays well below 2 at the larger "
        "batch, and that is below the critical one.",
    ),
    zh=Words(
        title="批量与学习率同乘一个数：路径不变",
        claimed="批量乘以 k，学习率也乘以 k，训练的温度以及整个动力学就大致不变。",
        assumed="普通 SGD；学习率远离稳定边界（学习率乘曲率远小于 2）；批量远小于临界批量。",
        seen="在二次函数上，权重静止时的散布相同；在真实数字图像上，批量与学习率同乘 4，"
        "损失曲线重合，而平方根规则和不变的学习率都落后。倍数太大时，散布变宽，损失居高不下。",
        answer="成立的条件是：在较大的批量下，学习率乘最大曲率仍远小于 2，且批量低于临界批量。",
    ),
    run=run,
)
