"""A warm-up by a small batch is careful where the rate is as small with it."""

from __future__ import annotations

import math

from rightbatch.lab.check import at_least, at_most
from rightbatch.lab.claim import Chart, Claim, Seen, Trial, Words
from rightbatch.lab.plots import Series, plot
from rightbatch.lab.rates.small_net import (
    EPOCH,
    following,
    log_ratio,
    seeds_of,
    small_job,
    training_loss,
)
from rightbatch.lab.rates.walks import timetable
from rightbatch.lab.samples import mean_of
from rightbatch.lab.training_runs import Curve, trained
from rightbatch.schedules.rate import Rate
from rightbatch.schedules.schedule import Constant, Ramp, Schedule

BATCH, SMALL, LR = 128, 8, 1.0  # half of where the large batch blows up [measured]
CHANCE = math.log(10)
RAMP, RISING = Ramp(SMALL, BATCH, EPOCH), Rate((0, EPOCH), (SMALL / BATCH, 1.0))
# Schedule of the batch, rule by which the rate follows it, schedule of the rate.
WAYS: dict[str, tuple[Schedule, str, Rate | None]] = {
    "large batch at once": (Constant(BATCH), "none", None),
    "rate warm-up": (Constant(BATCH), "none", RISING),
    "small batch, rate with it": (RAMP, "linear", None),
    "small batch, rate kept": (RAMP, "none", None),
}


def warmed_up(way: str, seed: int) -> Curve:
    """Training loss after every update of the first epoch on the digits."""
    schedule, rule, rate = WAYS[way]
    job = small_job(seed, batch_size=BATCH, lr=LR)
    return trained(
        job,
        batch_size=schedule.start,
        lr=LR,
        steps=len(timetable(schedule, lr=LR, examples=EPOCH)),
        look=training_loss(job),
        before=following(schedule, rule=rule, rate=rate),
    )


def run(trial: Trial) -> Seen:
    """The first epoch at a high rate, four ways."""
    curves: dict[str, list[Curve]] = {}
    for way in WAYS:
        trial.tell(way)
        curves[way] = [warmed_up(way, seed) for seed in seeds_of(trial, 12, 40)]
    rises = {
        way: mean_of([max(c.values) - CHANCE for c in runs])
        for way, runs in curves.items()
    }
    ends = {way: [c.values[-1] for c in runs] for way, runs in curves.items()}
    large, by_rate, careful, bold = WAYS
    gain = log_ratio(ends[careful], ends[by_rate])
    jump = {bold: rises[bold].value}
    calm = {way: rises[way].value for way in (careful, large)}
    limit = "rise above chance, rate kept"
    checks = (
        at_most("rise above chance, rate with it", 0.06, rises[careful], wrong=jump),
        at_most("log loss over the rate's warm-up", -0.05, gain, wrong={"same": 0.0}),
        at_least(limit, 0.06, rises[bold], part="limit", wrong=calm),
    )
    lines = [
        Series(way, (0, *runs[0].examples), (CHANCE, *runs[0].values))
        for way, runs in curves.items()
    ]
    chart = plot(lines, "examples seen", "training loss")
    caption = "One seed: with the rate kept a small batch first throws the net off."
    caption_zh = "同一随机种子：学习率不变时，小批量先把网络甩偏；随之变小则平稳。"
    return Seen(checks, (Chart(caption, caption_zh, chart),))


CLAIM = Claim(
    id="warm-up-small-batch",
    texts=(
        "5 动态调整的艺术: at first a smaller batch (or rate) to feel the way",
        "1 高级策略师：动态批量大小调整: begin with a smaller batch",
    ),
    papers=("Goyal et al. 2017, arXiv:1706.02677", "Merrill 2025, arXiv:2505.23971"),
    theory="Var(update) ~ lr^2 / b; progress of an example ~ lr / b, which the ramp "
    "keeps",
    verdict="holds if",
    seconds=3,
    power="twelve seeds: a rise of 0.05 and 5 % of the loss are told apart; --full: 40",
    en=Words(
        title="Warm up by a small batch, with a small rate",
        claimed="While gradients are unstable at first, feel the way with a smaller "
        "batch or rate.",
        assumed="The rate follows the batch: a small batch alone makes updates "
        "noisier, not smaller.",
        seen="On real digits a ramp of batch and rate is as calm as a warm-up of the "
        "rate and ends lower, by more updates; a ramp of the batch alone first throws "
        "the loss above chance. At this rate even the large batch at once is calm.",
        answer="the rate is small with the batch; at the full rate a small batch is "
        "the least careful way",
    ),
    zh=Words(
        title="用小批量预热，学习率也要小",
        claimed="训练之初梯度不稳定，应以较小的批量（或较小的学习率）小心探路。",
        assumed="学习率与批量同比变化：单独减小批量只会让更新更嘈杂，而不是更小。",
        seen="在真实数字图像上，批量与学习率一起爬升，与预热学习率一样平稳，且更新更多"
        "、损失更低；只爬升批量，损失先升到随机猜测之上。在这一学习率下，直接用大批量也平稳。",
        answer="学习率随批量一起变小；全额学习率配小批量最不小心",
    ),
    run=run,
)
