"""A batch proportional to 1 / |g|^2 holds a step's signal over its noise."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from torch import nn

from rightbatch.job.job import Job
from rightbatch.lab.check import at_least, equals
from rightbatch.lab.claim import Chart, Claim, Seen, Trial, Words
from rightbatch.lab.plots import Series, plot
from rightbatch.lab.rates.small_net import following, seeds_of, small_job
from rightbatch.lab.samples import mean_of
from rightbatch.lab.training_runs import trained
from rightbatch.schedules.live import SignalToNoise
from rightbatch.schedules.schedule import Constant, Schedule
from rightbatch.training.run_state import RunState
from rightbatch.tuning.noise_scale import noise_scale

EXAMPLES, INPUTS = 2048, 4  # of the regression
BATCH, LR, STEPS = 64, 0.0067, 300
EVERY = 75  # steps between two exact looks; the controller's own is every 25


def regression(seed: int) -> Job:
    """Linear regression from zero weights: noise of the labels 1, truth of norm 1/2.

    So the noise of an example's gradient hardly changes while the gradient falls.
    """
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(EXAMPLES, INPUTS, generator=random)
    y = x.sum(1) / (2 * math.sqrt(INPUTS)) + torch.randn(EXAMPLES, generator=random)

    def model() -> nn.Module:
        line = nn.Linear(INPUTS, 1, bias=False)
        nn.init.zeros_(line.weight)
        return line

    return Job(
        model=model,
        loss=lambda line, batch: (line(batch[0])[:, 0] - batch[1]).square().mean() / 2,
        data=(x, y),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=LR),
        batch_size=BATCH,
        seed=seed,
    )


def looks_along(
    job: Job, schedule: Schedule, *, lr: float, steps: int
) -> tuple[list[float], list[float], float]:
    """A run under a schedule, and its exact noise every 75 steps.

    Returns:
        |G|^2 B / tr Sigma, the square of a step's signal over noise; tr Sigma; and the
        last batch.
    """
    ratios, traces, follow = [], [], following(schedule)
    batches = [schedule.start]

    def before(run: RunState) -> None:
        follow(run)
        if run.steps % EVERY == 0:
            noise = noise_scale(run.job, at=run.network, exact=True)
            ratios.append(run.batch_size / noise.noise_scale.value)
            traces.append(noise.trace.value)
            batches.append(run.batch_size)

    b, every = schedule.start, 2 * steps
    trained(job, batch_size=b, lr=lr, steps=steps + 1, every=every, before=before)
    return ratios, traces, batches[-1]


def kept(ratios: list[float]) -> float:
    """Log of the ratio at the last two looks over that at the two before.

    Without the first look, when the controller does not know the gradient yet.
    """
    logs = np.log(ratios[1:])
    return float(logs[2:].mean() - logs[:2].mean())


def run(trial: Trial) -> Seen:
    """Signal over noise along runs: the batch that follows, a constant one, digits."""
    follow, followed = SignalToNoise(BATCH, most=EXAMPLES), []
    seeds = seeds_of(trial, 3, 8)
    for seed in seeds:
        trial.tell(f"seed {seed}")
        followed.append(looks_along(regression(seed), follow, lr=LR, steps=STEPS))
    fixed = Constant(BATCH)
    constant, _, _ = looks_along(regression(seeds[0]), fixed, lr=LR, steps=STEPS)
    net = small_job(trial.seed, batch_size=BATCH)
    net = dataclasses.replace(net, data=tuple(part[:256] for part in net.data))
    _, traces, _ = looks_along(net, fixed, lr=0.1, steps=2 * EVERY)
    held = mean_of([kept(ratios) for ratios, _, _ in followed])
    growth = mean_of([math.log(last / BATCH) for _, _, last in followed])
    rise = traces[-1] / traces[0]
    wrong, none = {"constant batch": kept(constant)}, {"constant batch": 0.0}
    checks = (
        equals("log SNR^2, late over early", 0.0, held, margin=0.8, wrong=wrong),
        at_least("log batch over first", math.log(4), growth, wrong=none),
        at_least("digits: tr Sigma", 1.5, rise, part="limit", wrong={"stays": 1.0}),
    )
    steps = range(0, STEPS + 1, EVERY)
    ways = {"batch ~ 1/|g|^2": followed[0][0], "batch constant": constant}
    series = [Series(way, steps, ratios, "points") for way, ratios in ways.items()]
    chart = plot(series, "step", "|g|^2 b / tr Sigma", log="y")
    caption = "The batch that follows keeps signal over noise; a constant one loses it."
    caption_zh = "随 1/|g|^2 增大的批量保持信噪比；固定批量的信噪比不断下降。"
    return Seen(checks, (Chart(caption, caption_zh, chart),))


CLAIM = Claim(
    id="signal-to-noise",
    texts=("4 信号与噪声之舞：驯服梯度: B ~ 1 / |gradient|^2",),
    papers=("De et al. 2017, arXiv:1610.05792", "McCandlish 2018, arXiv:1812.06162"),
    theory="SNR^2 = |G|^2 B / tr Sigma, so B ~ 1 / |G|^2 holds it while tr Sigma stays",
    verdict="holds if",
    seconds=8,
    power="three seeds: a factor of 2.2, where a constant batch loses 7; --full: eight",
    en=Words(
        title="Let the batch grow as 1/|g|^2",
        claimed="Near a minimum the gradient weakens; to hold signal over noise the "
        "batch must grow as one over its square.",
        assumed="An example's noise stays while the gradient shrinks, as in a "
        "regression of noisy labels near its minimum.",
        seen="On such a regression the product's schedule follows the gradient "
        "measured in the run, and the exact ratio stays level; a constant batch loses "
        "it. On digits the noise itself grows early on, so the rule would fall short.",
        answer="an example's noise stays; else follow the noise scale tr Sigma / |G|^2",
    ),
    zh=Words(
        title="让批量按 1/|g|^2 增长",
        claimed="接近最小值时梯度变弱；要使信噪比不变，批量必须与梯度平方成反比。",
        assumed="梯度变小时，单个样本梯度的噪声不变，如标签带噪声的回归在最小值附近。",
        seen="在这样的回归上，产品的方案跟随训练中测得的梯度，精确的信噪比保持平稳，固"
        "定批量则不断下降。在数字图像训练的早期，噪声本身在增大，这条规则就不够。",
        answer="单个样本的噪声不变；否则批量应跟随噪声尺度 tr Sigma / |G|^2",
    ),
    run=run,
)
