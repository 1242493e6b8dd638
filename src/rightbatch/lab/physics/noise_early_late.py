"""Noise helps to explore early in a run and is in the way late."""

from __future__ import annotations

import numpy as np

from rightbatch.lab.check import at_most, equals
from rightbatch.lab.claim import Chart, Claim, Seen, Trial, Words
from rightbatch.lab.physics.chains import geometric
from rightbatch.lab.physics.wells import DoubleWell
from rightbatch.lab.plots import Series, plot
from rightbatch.schedules.schedule import Constant

WELL = DoubleWell(0.3, noise=1000.0)
SMALL, LARGE, STEPS = 30, 300, 20_000  # T = 1/3 and 1/30
SCHEDULES = {
    "small": Constant(SMALL),
    "large": Constant(LARGE),
    "growing": geometric(SMALL, LARGE, STEPS),
    "shrinking": geometric(LARGE, SMALL, STEPS),
}


def run(trial: Trial) -> Seen:
    """Small, large, growing and shrinking batches, from the worse well."""
    rng = np.random.default_rng(trial.seed)
    left, saddle, _ = WELL.places
    looks = sorted({round(x) for x in np.geomspace(100, STEPS, 25)})
    at = WELL.under(rng, list(SCHEDULES.values()), trial.size(600, 3000), looks)
    excess = WELL.value(at) - WELL.value(left)
    found_by_small, found_by_large, *_ = map(float, (at[-1] <= saddle).mean(1))
    small, large, growing, shrinking = map(float, excess[-1].mean(1))
    best = min(small, large, shrinking)
    what = "share in the better well, small batch throughout"
    heat = WELL.heat(SMALL)
    wrong = {
        "large batch": found_by_large,
        "T = eta sigma^2 / m": WELL.left_share(2 * heat),
    }
    finds = equals(
        what, WELL.left_share(heat), found_by_small, margin=0.07, wrong=wrong
    )
    what = "loss left at the end, growing over the best of the others"
    wrong = {"the same batches in reverse": shrinking / best}
    settles = at_most(what, 0.5, growing / best, wrong=wrong)
    losses = zip(SCHEDULES, excess.mean(2).T, strict=True)
    series = [Series(name, looks, row) for name, row in losses]
    chart = plot(series, "steps", "mean loss above the global minimum", log="xy")
    caption = "A growing batch finds the better well and settles in it."
    zh = "逐渐增大的批量找到较好的势阱，并在其中安定下来。"
    return Seen((finds, settles), (Chart(caption, zh, chart),))


CLAIM = Claim(
    id="noise-early-late",
    texts=(
        "1 高级策略师：动态批量大小调整: 初期的噪声有益，后期成为滋扰",
        "4 信号与噪声之舞：驯服梯度: 先用小批量探索，再逐渐增大",
        "2 从比特到原子：优化的物理学: 先热后冷",
    ),
    papers=("Smith et al. 2018, arXiv:1711.00489",),
    theory="escape takes about exp(dU / T) steps, T = eta sigma^2 / (2m); then the "
    "share of a well is Boltzmann's",
    verdict="holds",
    seconds=2,
    power="600 chains a schedule: shares to 0.02, losses to 10 %; 3,000 with --full",
    en=Words(
        title="Noise early finds the better minimum, noise late keeps from settling",
        claimed="Early a small batch explores; later its noise makes the weight hover, "
        "so the batch should grow.",
        assumed="A better minimum behind a barrier that early noise can pass and late "
        "noise cannot.",
        seen="All chains begin in the worse well. The large batch stays there. The "
        "small one finds the better well and hovers high above its bottom. The batch "
        "that grows finds it and settles; the same batches in reverse do not settle.",
    ),
    zh=Words(
        title="早期的噪声找到更好的极小值，后期的噪声妨碍安定",
        claimed="早期小批量有利于探索；后期它的噪声使参数徘徊，所以批量应逐渐增大。",
        assumed="势垒另一边有更好的极小值，早期的噪声能越过，后期的不能。",
        seen="所有链从较差的势阱出发。大批量留在那里；小批量找到较好的势阱，却悬在谷底"
        "上方很高处；逐渐增大的批量既找到它又安定下来；倒过来用则不能安定。",
    ),
    run=run,
)
