"""The variance of a mini-batch gradient is Sigma / b."""

from __future__ import annotations

import torch

from rightbatch.core.estimate import Estimate
from rightbatch.lab.check import at_most, equals
from rightbatch.lab.claim import Chart, Claim, Seen, Trial, Words
from rightbatch.lab.plots import Series, plot
from rightbatch.lab.samples import mean_of
from rightbatch.lab.training_runs import batch_gradient, digits_job, started
from rightbatch.training.run_state import RunState
from rightbatch.tuning.noise_scale import noise_scale

EXAMPLES = 256  # of digits, so that b reaches N
BATCHES = (1, 4, 16, 64, 192)


def gradient_variance(
    run: RunState,
    b: int,
    draws: int,
    random: torch.Generator,
    *,
    distinct: bool = False,
) -> Estimate:
    """Mean squared distance of batches' gradients from the whole one."""
    n, squares = run.job.length, []
    whole = batch_gradient(run, torch.arange(n))
    for _ in range(draws):
        rows = (
            torch.randperm(n, generator=random)[:b]
            if distinct
            else torch.randint(n, (b,), generator=random)
        )
        squares.append(float((batch_gradient(run, rows) - whole).square().sum()))
    return mean_of(squares)


def run(trial: Trial) -> Seen:
    """Gradients of many batches of each size against the exact covariance."""
    job = digits_job(seed=trial.seed)
    job = digits_job(seed=trial.seed, data=tuple(t[:EXAMPLES] for t in job.data))
    trace = noise_scale(job, exact=True).trace.value
    draws, random = trial.size(100, 400), torch.Generator().manual_seed(trial.seed)
    replaced: list[Estimate] = []
    distinct: list[Estimate] = []
    with started(job) as state:
        for b in BATCHES:
            trial.tell(f"b = {b}")
            replaced.append(gradient_variance(state, b, draws, random))
            distinct.append(gradient_variance(state, b, draws, random, distinct=True))
        last = gradient_variance(state, EXAMPLES, draws, random, distinct=True)
    drawn, without = replaced[2].scale(16 / trace), distinct[-1].scale(192 / trace)
    finite, at_n = (EXAMPLES - 192) / (EXAMPLES - 1), last.scale(1 / replaced[0].value)
    powers, none = {"1/sqrt(b)": 4.0, "1/b^2": 1 / 16}, "no finite-population factor"
    others = {none: 1.0, "1 - b/N squared": finite**2}
    first, left = "b Var / tr Sigma, b = 16, with replacement", {none: 1 / EXAMPLES}
    second = "b Var / tr Sigma, b = 192 of 256, without"
    checks = (
        equals(first, 1.0, drawn, within=0.15, wrong=powers),
        equals(second, finite, without, within=0.15, wrong=others),
        at_most("Var at b = N over Var at b = 1", 1e-10, at_n, wrong=left),
    )
    law = [trace / b for b in BATCHES]
    less = [trace / b * (EXAMPLES - b) / (EXAMPLES - 1) for b in BATCHES]
    series = [
        Series("with replacement", BATCHES, replaced, "points"),
        Series("without", BATCHES, distinct, "points"),
        Series("tr Sigma / b", BATCHES, law, "dashed"),
        Series("times (N - b)/(N - 1)", BATCHES, less),
    ]
    chart = plot(series, "batch size b", "variance of the gradient", log="xy")
    caption = "Each point is a mean over batches; the lines have no free number."
    zh = "每个点是许多小批量的平均；两条线没有任何可调参数。"
    return Seen(checks, (Chart(caption, zh, chart),))


CLAIM = Claim(
    id="variance-over-b",
    texts=(
        "1 颤抖的指南针：梯度噪声与稳定性: Var(g_b) = sigma^2 / b",
        "3 梯度估计的方差: Var(g_b) = Sigma / b",
    ),
    papers=("McCandlish et al. 2018, arXiv:1812.06162",),
    theory="Var(g_b) = tr Sigma / b with replacement; times (N - b)/(N - 1) without",
    verdict="holds",
    seconds=8,
    power="100 batches of each size: a factor of 1.15 is told apart; 400 with --full",
    en=Words(
        title="Doubling the batch halves the variance of the gradient",
        claimed="The gradient of b examples is the mean of b independent opinions, so "
        "its variance is that of one example over b.",
        assumed="Examples drawn independently, with replacement. Batches of distinct "
        "examples vary less, by the factor (N - b)/(N - 1), and not at all at b = N.",
        seen="On 256 real digits the exact covariance is made example by example; "
        "then hundreds of batches of each size are drawn and their gradients compared "
        "with the whole one. Points and lines agree without any free number.",
    ),
    zh=Words(
        title="批量加倍，梯度方差减半",
        claimed="b 个样本的梯度是 b 个独立“意见”的平均，所以方差是单个样本的 1/b。",
        assumed="样本独立、有放回地抽取。无放回时方差更小，要乘以 (N - b)/(N - 1)；"
        "b = N 时为零。",
        seen="在 256 张真实数字图像上逐个样本算出精确的协方差，再抽取数百个各种大小的"
        "小批量，比较它们的梯度与全量梯度。点与线一致，没有任何可调参数。",
    ),
    run=run,
)
