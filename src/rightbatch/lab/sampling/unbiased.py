"""The mean of all mini-batch gradients is the whole one, where losses are means."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from itertools import combinations, product

import torch
from torch import Tensor, nn

from rightbatch.job.job import Job
from rightbatch.lab.check import at_least, at_most, equals
from rightbatch.lab.claim import Chart, Claim, Seen, Trial, Words
from rightbatch.lab.plots import Series, plot
from rightbatch.lab.sampling.partly_trained import partly_trained
from rightbatch.lab.training_runs import batch_gradient, started
from rightbatch.training.run_state import RunState

EXAMPLES, EXACT = 8, 1e-5  # of |G|; gradients are made in float32


def ragged_job(seed: int, lengths: Tensor) -> Job:
    """Sequences whose targets sit on a slope: the longer, the higher.

    Args:
        seed: Of the numbers.
        lengths: Tokens of each sequence, (examples,).
    """
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(EXAMPLES, EXAMPLES, 3, generator=generator)
    targets = tokens.sum(2) + torch.arange(EXAMPLES)[:, None] / 2
    mask = (torch.arange(EXAMPLES) < lengths[:, None]).float()

    def loss(model: nn.Module, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        inputs, wanted, real = batch
        return ((model(inputs)[..., 0] - wanted).square() * real).sum(), real.sum()

    return Job(
        model=lambda: nn.Linear(3, 1),
        loss=loss,
        data=(tokens, targets, mask),
        optimizer=lambda params: torch.optim.SGD(params, lr=0.1),
        batch_size=2,
        seed=seed,
    )


def mean_gradient(run: RunState, batches: Iterable[tuple[int, ...]]) -> Tensor:
    """The plain mean of the gradients of some batches, (parameters,)."""
    gradients = [batch_gradient(run, torch.tensor(batch)) for batch in batches]
    return torch.stack(gradients).mean(0)


def off_by(gradient: Tensor, whole: Tensor) -> float:
    """Its distance, in lengths of the whole gradient."""
    return float((gradient - whole).norm() / whole.norm())


def biases(job: Job) -> list[float]:
    """|E g_b - G| / |G| over all batches of b distinct examples, b = 1 … N."""
    with started(job) as run:
        whole = batch_gradient(run, torch.arange(EXAMPLES))
        return [
            off_by(mean_gradient(run, combinations(range(EXAMPLES), b)), whole)
            for b in range(1, EXAMPLES + 1)
        ]


def run(trial: Trial) -> Seen:
    """Every possible batch of eight examples, of plain and of ragged losses."""
    digits = partly_trained(trial.seed, EXAMPLES, steps=0, lr=0.1)
    plain = biases(digits)
    trial.tell("with replacement")
    with started(digits) as state:
        whole = batch_gradient(state, torch.arange(EXAMPLES))
        drawn = mean_gradient(state, product(range(EXAMPLES), repeat=2))
        tailed = mean_gradient(state, [(0, 1, 2), (3, 4, 5), (6, 7)])
        halves = mean_gradient(state, [(0, 1, 2, 3), (4, 5, 6, 7)])
    job = ragged_job(trial.seed, torch.arange(1, EXAMPLES + 1))
    ragged = biases(job)
    ratio = {"a ratio of ragged sums": ragged[0]}
    rounded = {"no finite-population factor": 2.0, "1/sqrt(b)": 2**0.5}
    pairs, epoch = off_by(drawn, whole), off_by(tailed, whole)
    law = [(EXAMPLES - b) / b for b in range(1, EXAMPLES)]  # (N - b) / b, of any unit
    fall, mean = ragged[2] / ragged[5], {"a mean over examples": plain[1]}
    even, limit = {"4 + 4": off_by(halves, whole)}, partial(equals, part="limit")
    checks = (
        at_most("largest bias over all C(8, b)", EXACT, max(plain), wrong=ratio),
        at_most("bias over all 8^2, with replacement", EXACT, pairs, wrong=ratio),
        at_least(
            "an epoch by 3 + 3 + 2, off by", 0.01, epoch, part="limit", wrong=even
        ),
        at_least("bias, 1 ... 8 targets", 0.01, ragged[1], part="limit", wrong=mean),
        limit(
            "bias, b = 3 over b = 6", law[2] / law[5], fall, within=0.15, wrong=rounded
        ),
    )
    sizes = list(range(1, EXAMPLES))  # at b = N all are zero
    series = [
        Series("mean of digits", sizes, plain[:-1], "points"),
        Series("ragged targets", sizes, ragged[:-1], "points"),
        Series(
            "first order in 1/b", sizes, [ragged[5] * f / law[5] for f in law], "dashed"
        ),
    ]
    chart = Chart(
        "Over all batches a mean is unbiased to rounding; a ratio of sums is not.",
        "遍历所有可能的批次：平均损失无偏（仅有舍入误差）；长短不一时的比值则有偏。",
        plot(series, "batch size b, of 8 examples", "bias, in |G|", log="y"),
    )
    return Seen(checks, (chart,))


CLAIM = Claim(
    id="unbiased",
    texts=("3 梯度估计的无偏估计: E[g_B] = grad L, with and without replacement",),
    papers=("Cochran 1977, Sampling Techniques, chapter 6 (ratio estimators)",),
    theory="E[g_B] = G for a mean over examples drawn alike; of a ratio of sums "
    "E[g_B] - G falls like (N - b)/((N - 1) b) to first order",
    verdict="holds if",
    seconds=2,
    power="exact: every possible batch of 8 examples; the reduced size is the full one",
    en=Words(
        title="A mini-batch errs, but not to one side",
        claimed="Averaged over all batches that might be drawn, the gradient is that "
        "of the whole data set, with or without replacement.",
        assumed="The loss is a mean over examples, each equally likely in a batch.",
        seen="Over every possible batch of eight examples only rounding is left. Where "
        "sequences differ in length and the loss is a mean over tokens, the average is "
        "off. A short last batch counts too much in the mean of one epoch.",
        answer="the loss is a mean over examples drawn alike; a mean over "
        "ragged numbers of targets has a bias that falls like 1/b",
    ),
    zh=Words(
        title="小批量会出错，但不偏向一边",
        claimed="对所有可能抽到的批次取平均，小批量梯度等于全体数据的梯度，"
        "有放回与无放回皆然。",
        assumed="每个样本被抽到的机会相同，且损失是对样本的平均。",
        seen="对八个样本的所有批次取平均，只剩舍入误差。若序列长短不一而损失按词元"
        "平均，则有偏差。最后的小批次在一个轮次的平均中权重过大。",
        answer="损失是对等概率样本的平均；目标数不同时，偏差按 1/b 减小",
    ),
    run=run,
)
