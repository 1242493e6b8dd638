"""A growing batch takes the place of a decaying rate, with fewer updates."""

from __future__ import annotations

import numpy as np

from rightbatch.lab.check import at_most, equals
from rightbatch.lab.claim import Chart, Claim, Seen, Trial, Words
from rightbatch.lab.plots import Series, plot
from rightbatch.lab.rates.small_net import EPOCH, seeds_of, small_job
from rightbatch.schedules.lr_exchange import InsteadOfDecay
from rightbatch.schedules.rate import Rate
from rightbatch.schedules.schedule import Constant, Schedule
from rightbatch.training.train import Run, train

FIRST, LR = 4, 0.3  # a rate that leaves noise to be cooled away [measured]
SCATTER = 0.06  # of a seed's log held-out loss: deviation of 12 decays [measured]
FLOOR, GROWTH = 1 / 64, 8  # the rate's last factor; the largest batch over the first
RATE = Rate.cosine(EPOCH, floor=FLOOR)
WAYS: dict[str, tuple[Schedule, Rate | None]] = {
    "rate decays": (Constant(FIRST), RATE),
    "batch grows instead": (InsteadOfDecay(FIRST, RATE, GROWTH * FIRST), None),
    "neither": (Constant(FIRST), None),
}


def share_of_updates() -> float:
    """Updates over those of the decay: the mean over examples of b_0 / b."""
    places = np.linspace(0, EPOCH, 2001)
    return float(np.mean([max(RATE(at), 1 / GROWTH) for at in places]))


def trained_by(way: str, seed: int) -> Run:
    """One epoch on the digits by the product's own loop."""
    job, (schedule, rate) = small_job(seed, batch_size=FIRST, lr=LR), WAYS[way]
    return train(job, schedule=schedule, rate=rate, rule="none", examples=EPOCH)


def rms_log_ratio(values: list[float], over: list[float]) -> float:
    """Root mean square of log values over others, pair by pair."""
    return float(np.sqrt(np.mean(np.square(np.log(values) - np.log(over)))))


def run(trial: Trial) -> Seen:
    """Held-out loss at the end: decay, exchange, and neither."""
    runs: dict[str, list[Run]] = {way: [] for way in WAYS}
    for seed in seeds_of(trial, 4, 10):
        for way in WAYS:
            trial.tell(f"seed {seed}, {way}")
            runs[way].append(trained_by(way, seed))
    losses = {way: [r.last.metric or np.inf for r in rs] for way, rs in runs.items()}
    decay, grown, neither = losses.values()
    off = rms_log_ratio(grown, decay) / SCATTER
    control = {"neither": rms_log_ratio(neither, decay) / SCATTER}
    steps = {way: rs[0].last.steps for way, rs in runs.items()}
    saved = steps["batch grows instead"] / steps["rate decays"]
    none = {"nothing saved": 1.0, "largest batch at once": 1 / GROWTH}
    checks = (
        equals("share of updates", share_of_updates(), saved, within=0.03, wrong=none),
        at_most("rms of pairs, in scatters of one seed", 1.0, off, wrong=control),
    )
    chart = plot(
        [
            Series(way, [r.steps for r in rows], [r.metric or np.inf for r in rows])
            for way, rows in ((way, rs[0].rows) for way, rs in runs.items())
        ],
        "updates",
        "held-out loss",
        log="y",
    )
    caption = "One seed, equal examples: the same end in about half of the updates."
    caption_zh = "同一随机种子、同样多的样本：约一半的更新次数，终点相同。"
    return Seen(checks, (Chart(caption, caption_zh, chart),))


CLAIM = Claim(
    id="instead-of-decay",
    texts=(
        "5 动态调整的艺术: keep the step, grow the batch instead of decaying the rate",
    ),
    papers=("Smith et al. 2018, arXiv:1711.00489",),
    theory="lr / b as the decay has it: b = b_0 lr_0 / lr; updates: the mean of b_0 / "
    "b",
    verdict="holds",
    seconds=6,
    power="four seeds: once their scatter, doing neither is ten off; --full: ten seeds",
    en=Words(
        title="Grow the batch instead of decaying the rate",
        claimed="Late in training the batch can grow in place of a decay: as precise, "
        "more efficient.",
        assumed="SGD, below the critical batch; beyond the largest batch the rate must "
        "still fall.",
        seen="A net on real digits is trained with a cosine decay, and with the batch "
        "growing up to eightfold instead. Held-out losses end alike, in about half of "
        "the updates; doing neither ends far worse.",
    ),
    zh=Words(
        title="用增大批量代替学习率衰减",
        claimed="训练后期可以保持步长、增大批量来代替学习率衰减：精度相同，效率更高。",
        assumed="使用 SGD，批量低于临界批量；批量不能再增大时，学习率仍须下降。",
        seen="在真实数字图像上，一种按余弦衰减，另一种改为批量最多增大到八倍。留出集损"
        "失终点相同，更新次数约为一半；两者都不做则差得多。",
    ),
    run=run,
)
