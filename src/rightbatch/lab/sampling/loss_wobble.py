"""The loss of mini-batch training wobbles, less at larger batches."""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from torch import nn

from rightbatch.core.estimate import Estimate
from rightbatch.job.job import Job
from rightbatch.lab.check import at_least, at_most, equals
from rightbatch.lab.claim import Chart, Claim, Seen, Trial, Words
from rightbatch.lab.plots import Series, plot
from rightbatch.lab.samples import mean_of, slope_of
from rightbatch.lab.sampling.partly_trained import partly_trained
from rightbatch.lab.training_runs import Curve, trained

EXAMPLES = 1437  # all training digits
BATCHES = (4, 16, 64, 256)
RATE, LARGE_RATE = 0.1, 8.0  # steady at b = N, and far too large [measured]


def watched(job: Job, b: int, steps: int) -> tuple[Curve, list[float]]:
    """A run, its whole loss seen after every step, and the variance of one loss."""
    pixels, classes = job.data
    variances: list[float] = []

    def whole_loss(model: nn.Module) -> float:
        losses = F.cross_entropy(model(pixels), classes, reduction="none")
        variances.append(float(losses.var(correction=0)))
        return float(losses.mean())

    curve = trained(job, batch_size=b, lr=RATE, steps=steps, look=whole_loss)
    return curve, variances


def rising(losses: tuple[float, ...]) -> float:
    """The share of steps at which a curve goes up."""
    return float((np.diff(losses) > 0).mean())


def run(trial: Trial) -> Seen:
    """Losses of batches of every size, beside the whole loss at the same weights."""
    steps = trial.size(150, 1000)
    job = partly_trained(trial.seed, EXAMPLES, steps=0, lr=RATE)
    curves: dict[int, Curve] = {}
    wobble: dict[int, Estimate] = {}
    for b in BATCHES:
        trial.tell(f"b = {b}")
        curves[b], variances = watched(job, b, steps)
        # The batch of a step meets the weights that the last look has seen.
        off = np.subtract(curves[b].losses[1:], curves[b].values[:-1])
        wobble[b] = mean_of((off**2 / np.array(variances[:-1])).tolist())
    whole, _ = watched(job, EXAMPLES, steps)
    large = trained(job, batch_size=EXAMPLES, lr=LARGE_RATE, steps=30, every=99)
    sizes = [wobble[b].value ** 0.5 for b in BATCHES]
    slope = slope_of(np.log(BATCHES).tolist(), np.log(sizes).tolist())
    rises = {b: rising(curve.losses) for b, curve in curves.items()}
    calm, wild = rising(whole.losses), rising(large.losses)
    of_law, laws = wobble[16].scale(16), {"1/sqrt(b)": 4.0, "1/b^2": 1 / 16}
    others, slow = {"1/b": -1.0, "as large at every b": 0.0}, {"small rate": calm}
    checks = (
        equals("b wobble^2 / Var(loss), b = 16", 1.0, of_law, within=0.5, wrong=laws),
        equals("exponent of the wobble", -0.5, slope, margin=0.08, wrong=others),
        at_least("rising steps at b = 4", 0.3, rises[4], wrong={"b = N": calm}),
        at_most("rising steps at b = N", 0.0, calm, wrong={"b = 256": rises[256]}),
        at_least("the same at 80 times the rate", 0.05, wild, wrong=slow, part="limit"),
    )
    times = list(range(0, 150, 3))
    drawn = {"b = 4": curves[4], "b = 64": curves[64], "b = N": whole}
    lines = [Series(n, times, [c.losses[t] for t in times]) for n, c in drawn.items()]
    chart = Chart(
        "The loss of each step's own batch, of three sizes.",
        "三种批量下，每一步自身批次的损失。",
        plot(lines, "step", "loss of the batch"),
    )
    return Seen(checks, (chart,))


CLAIM = Claim(
    id="loss-wobble",
    texts=(
        "3 波动的损失曲线: full batch falls smoothly, mini-batches wobble, more so the "
        "smaller b is",
    ),
    theory="batch loss - whole loss at the same weights has sd = "
    "sd(loss) sqrt((N - b)/((N - 1) b)); exact descent falls while eta < 2/curvature",
    verdict="holds if",
    seconds=3,
    power="150 steps a batch size: an exponent off by 0.1 is told apart; 1,000 in full",
    en=Words(
        title="Smaller batches make the loss curve wobble more",
        claimed="The loss of full-batch training falls smoothly at every step; that of "
        "mini-batches wobbles, and more so the smaller they are.",
        assumed="The curve is that of each step's own batch. Full-batch descent is "
        "smooth only below the rate at which the steepest direction is unstable.",
        seen="After every step the loss of the next batch is set beside that of the "
        "whole data at the same weights: the gap has the size of a mean of b losses. "
        "At b = N the curve never rises, until the rate is made much larger.",
        answer="the rate is small enough; at a far larger one the full batch's curve "
        "rises too",
    ),
    zh=Words(
        title="批量越小，损失曲线波动越大",
        claimed="全批量训练的损失每一步都平滑下降；小批量的损失会波动，批量越小波动越大。",
        assumed="曲线画的是每一步自身批次的损失。只有学习率低于最陡方向的失稳界限时，"
        "全批量曲线才平滑。",
        seen="每一步之后，比较下一批次的损失与同一参数处的整体损失：差距正好是 b 个样本"
        "平均的误差大小。b = N 时曲线从不上升，除非把学习率调得很大。",
        answer="学习率足够小；学习率大得多时，全批量的曲线也会上升",
    ),
    run=run,
)
