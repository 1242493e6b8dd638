"""BatchNorm over time tells an autoregressive model what comes next."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rightbatch as rb
from rightbatch.job.job import Job
from rightbatch.lab.check import at_least, at_most, equals
from rightbatch.lab.claim import Chart, Claim, Seen, Trial, Words
from rightbatch.lab.plots import Series, plot
from rightbatch.lab.samples import mean_of
from rightbatch.lab.touching.sequence_model import StepByStep
from rightbatch.lab.training_runs import trained

EXAMPLES, STEPS, RATE = 2, 4, 0.01
LATE = 200  # last steps, whose mean is taken
CHANCE = math.log(2)  # nats: no one can foresee a coin


def seen_so_far(flips: Tensor) -> Tensor:
    """What each step may know of coins (n, T): (n, T, T + 2)."""
    place = torch.eye(flips.shape[1]).expand(len(flips), -1, -1)
    coin = flips[..., None] - 0.5
    return torch.cat([coin, coin.cumsum(1) / 2, place], -1)


def next_flip(model: nn.Module, batch: tuple[Tensor]) -> Tensor:
    """Mean cross entropy of every coin by the ones before it, in nats."""
    guesses = model(seen_so_far(batch[0]))[:, :-1]
    return F.binary_cross_entropy_with_logits(guesses, batch[0][:, 1:])


def training(norm: str, *, seed: int, steps: int) -> tuple[np.ndarray, float]:
    """Train a model to foresee coins: its losses, and the held-out one."""
    generator = torch.Generator().manual_seed(seed)
    flips = torch.randint(2, (4096 + 512, STEPS), generator=generator).float()
    job = Job(
        model=lambda: StepByStep(norm, STEPS + 2),
        loss=next_flip,
        data=(flips[512:],),
        optimizer=lambda p: torch.optim.Adam(p, lr=RATE),
        batch_size=EXAMPLES,
        evaluate=lambda model: next_flip(model, (flips[:512],)).item(),
        seed=seed,
    )
    curve = trained(job, batch_size=EXAMPLES, lr=RATE, steps=steps, every=steps)
    return np.asarray(curve.losses), curve.values[-1]


def future_leaks(norm: str) -> int:
    """How many leaks from all later steps there are."""
    x = seen_so_far(torch.randint(2, (8, STEPS)).float())
    leaks = rb.coupling.leaks(StepByStep(norm, STEPS + 2), x, time_axis=1)
    return sum(leak.lookahead == math.inf for leak in leaks)


def run(trial: Trial) -> Seen:
    """Train on coins under BatchNorm and LayerNorm; then ask for leaks."""
    steps = trial.size(600, 2400)
    torch.manual_seed(trial.seed)
    leaking = {norm: future_leaks(norm) for norm in ("BatchNorm", "LayerNorm")}
    runs = {}
    for norm in ("BatchNorm", "LayerNorm"):
        runs[norm] = training(norm, seed=trial.seed, steps=steps)
    batch, layer = (mean_of(losses[-LATE:].tolist()) for losses, _ in runs.values())
    checks = (
        at_most(
            "training loss on coins with BatchNorm over time, nats",
            CHANCE - 0.07,
            batch,
            wrong={"LayerNorm": layer.value},
        ),
        at_least(
            "training loss with LayerNorm, nats",
            CHANCE - 0.03,
            layer,
            wrong={"BatchNorm": batch.value},
        ),
        at_least(
            "held-out loss with BatchNorm in eval mode, nats",
            CHANCE + 0.05,
            runs["BatchNorm"][1],
            wrong={"LayerNorm": runs["LayerNorm"][1]},
        ),
        equals(
            "leaks from all later steps that leaks() names, BatchNorm",
            1,
            leaking["BatchNorm"],
            wrong={"LayerNorm": leaking["LayerNorm"]},
        ),
    )
    middle = range(20, steps, 40)
    series = [
        Series(name, middle, losses.reshape(-1, 40).mean(1).tolist())
        for name, (losses, _) in runs.items()
    ]
    series.append(Series("a fair coin", [0.0, steps], [CHANCE, CHANCE], "dashed"))
    chart = Chart(
        "A coin cannot be foreseen: a loss below the dashed line is read from answers.",
        "硬币无法预知：低于虚线的损失是从答案里偷看来的。",
        plot(series, "step", "training loss, nats"),
    )
    return Seen(checks, (chart,))


CLAIM = Claim(
    id="batchnorm-future",
    texts=("4 独立的自由：为后批量时代而设计: BN leaks the future; the model cheats",),
    papers=("Ioffe, Szegedy 2015, arXiv:1502.03167",),
    theory="loss on fair coins >= log 2 for who sees the past only",
    verdict="holds",
    seconds=5,
    power="0.03 nats of 0.69 are told apart; longer training with --full",
    en=Words(
        title="BatchNorm over time looks into the future",
        claimed="BatchNorm's statistics hold all steps of the sequences, so a model "
        "that predicts the next one can cheat.",
        assumed="Statistics over examples and steps, of so few values that one of them "
        "can be told.",
        seen="A model predicts fair coins. With BatchNorm its training loss falls "
        "below what is possible, and in eval mode it is worse than guessing; with "
        "LayerNorm it learns nothing. The leak search tells before any training.",
    ),
    zh=Words(
        title="沿时间的 BatchNorm 会看到未来",
        claimed="BatchNorm 的统计量包含所有时间步，预测下一步的模型因此可以作弊。",
        assumed="统计量同时跨样本和时间步，而且参与平均的值少到能从中读出单个值。",
        seen="让一个小模型预测公平的硬币。用 BatchNorm 时训练损失低于可能的下限，"
        "而在 eval 模式下比乱猜还差；用 LayerNorm 什么也学不到。泄漏搜索训练前就发现。",
    ),
    run=run,
)
