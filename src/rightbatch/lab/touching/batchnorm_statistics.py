"""BatchNorm's output wobbles by its statistics, with a variance that goes as 1/b."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

import rightbatch as rb
from rightbatch.core.estimate import Estimate
from rightbatch.lab.check import equals
from rightbatch.lab.claim import Chart, Claim, Seen, Trial, Words
from rightbatch.lab.plots import Series, plot
from rightbatch.lab.samples import mean_of, slope_of
from rightbatch.lab.training_runs import digits_job

BATCHES = (8, 16, 32, 64, 128, 256)
PROBES, CHANNELS = 32, 16


def wobble_of_one(values: Tensor, probes: Tensor) -> Tensor:
    """Variance of a normalised value, times b, (probes, channels), for large b.

    With y the value by the population's mean and deviation, gamma its skewness and
    kappa its kurtosis, (y - mean) / deviation of b examples has the variance
    (1 + y gamma + y^2 (kappa - 1) / 4) / b, to first order. [derived: delta method]
    """
    y = (values - values.mean(0)) / values.std(0, correction=0)
    skew, kurtosis = y.pow(3).mean(0), y.pow(4).mean(0)
    return 1 + y[probes] * skew + y[probes].square() * (kurtosis - 1) / 4


def wobble(
    norm: nn.Module, values: Tensor, probes: Tensor, b: int, draws: int
) -> list[float]:
    """Variance of the probes' outputs over batches of b, one for every probe."""
    outputs = []
    for _ in range(draws):
        rows = torch.randint(len(values), (PROBES, b))
        rows[:, 0] = probes  # each in a batch of its own
        with torch.no_grad():
            outputs.append(norm(values[rows.flatten()])[::b])
    return torch.stack(outputs).var(0).mean(1).tolist()


def run(trial: Trial) -> Seen:
    """Normalise the same digits among many others, for six batch sizes."""
    pixels = digits_job().data[0]
    torch.manual_seed(trial.seed)
    with torch.no_grad():
        values = nn.Linear(pixels.shape[1], CHANNELS)(pixels)
    probes = torch.randperm(len(values))[:PROBES]
    draws = trial.size(60, 600)
    theory = wobble_of_one(values, probes)
    batch: list[Estimate] = []
    for b in BATCHES:
        trial.tell(f"b = {b}")
        norm = rb.coupling.GhostBatchNorm(CHANNELS, group=b)
        batch.append(mean_of(wobble(norm, values, probes, b, draws)))
    logs = [
        (math.log(b), math.log(v.value)) for b, v in zip(BATCHES, batch, strict=True)
    ]
    slope = slope_of(*zip(*logs[1:], strict=True))
    law, b = float(theory.mean()), BATCHES[-2]
    checks = (
        equals(
            "slope of log variance over log b, from b = 16",
            -1.0,
            slope,
            margin=0.12,
            wrong={"1/sqrt(b)": -0.5, "1/b^2": -2.0},
        ),
        equals(
            f"b times the variance at b = {b}",
            law,
            batch[-2].scale(b),
            within=0.15,
            wrong={"the mean alone wobbles": 1.0},
        ),
    )
    series = [
        Series("BatchNorm", BATCHES, batch, "points"),
        Series("first order", BATCHES, [law / b for b in BATCHES], "dashed"),
    ]
    chart = Chart(
        "The line has no free number: it comes from the skewness and kurtosis of what "
        "is normalised.",
        "这条线没有可调参数：它由被归一化的数据的偏度和峰度算出。",
        plot(series, "batch size b", "variance of a normalised value", log="xy"),
    )
    return Seen(checks, (chart,))


CLAIM = Claim(
    id="batchnorm-statistics",
    texts=("4 独立的自由：为后批量时代而设计: BN wants large b for stable statistics",),
    papers=("Ioffe, Szegedy 2015, arXiv:1502.03167",),
    theory="Var(y) = (1 + y skew + y^2 (kurtosis - 1)/4) / b",
    verdict="holds",
    seconds=2,
    power="60 batches of each size: slope to 0.12, factor to 15 %; 600 with --full",
    en=Words(
        title="BatchNorm needs a large batch for quiet statistics",
        claimed="BatchNorm's mean and deviation are estimates from b examples, so what "
        "it says of an example wobbles.",
        assumed="Batches drawn at random, of 16 or more: to first order in 1/b.",
        seen="The same digits are normalised often, among others. The variance "
        "of their outputs falls as one over b, with the factor that the shape of the "
        "data gives.",
    ),
    zh=Words(
        title="BatchNorm 需要大批量才有安静的统计量",
        claimed="BatchNorm 由 b 个样本估计统计量，所以输出会抖动。",
        assumed="批量随机抽取，至少 16 个样本：取 1/b 的一阶近似。",
        seen="同样的数字反复与不同样本一起归一化。输出的方差按 1/b 下降，"
        "系数由数据的形状给出。",
    ),
    run=run,
)
