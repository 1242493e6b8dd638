"""Noise helps to explore early in a run and is in the way late."""

from __future__ import annotations

import numpy as np

from rightbatch.lab.check import at_least, at_most, equals
from rightbatch.lab.claim import Chart, Claim, Seen, Trial, Words
from rightbatch.lab.physics.chains import geometric
from rightbatch.lab.physics.wells import DoubleWell
from rightbatch.lab.plots import Series, plot
from rightbatch.lab.samples import mean_of
from rightbatch.landscape.stationary import stationary_variance
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
    left, saddle, right = WELL.places
    looks = sorted({round(x) for x in np.geomspace(100, STEPS, 25)})
    at = WELL.under(rng, list(SCHEDULES.values()), trial.size(600, 3000), looks)
    excess = WELL.value(at) - WELL.value(left)
    found_by_small, found_by_large, *_ = map(float, (at[-1] <= saddle).mean(1))
    small, large, growing, shrinking = map(float, excess[-1].mean(1))
    best = min(small, large, shrinking)
    k = WELL.curvature(right)
    floor = k / 2 * stationary_variance(WELL.lr, WELL.noise, k, LARGE)
    checks = (
        at_least(
            "share in the better well, small batch throughout",
            0.7,
            found_by_small,
            wrong={"large batch": found_by_large},
        ),
        equals(
            "what the large batch loses in its well: eta sigma^2 / (2 m (2 - eta k))",
            floor,
            mean_of(excess[-1, 1] - WELL.gap),
            within=0.2,
            wrong={"m forgotten": floor * LARGE, "T": 2 * floor},
        ),
        at_most(
            "loss left at the end, growing over the best of the others",
            0.5,
            growing / best,
            wrong={"the same batches in reverse": shrinking / best},
        ),
    )
    losses = zip(SCHEDULES, excess.mean(2).T, strict=True)
    picture = Chart(
        "The loss along four runs: a growing batch finds the well and settles.",
        "四种训练中的损失：逐渐增大的批量找到势阱并安定下来。",
        plot(
            [Series(name, looks, row) for name, row in losses],
            "steps",
            "mean loss above the global minimum",
            log="xy",
        ),
    )
    return Seen(checks, (picture,))


CLAIM = Claim(
    id="noise-early-late",
    texts=(
        "1 高级策略师：动态批量大小调整: 初期的噪声有益，后期成为滋扰",
        "4 信号与噪声之舞：驯服梯度: 先用小批量探索，再逐渐增大",
        "2 从比特到原子：优化的物理学: 先热后冷",
    ),
    papers=("Smith et al. 2018, arXiv:1711.00489",),
    theory="escape takes exp(2 m dU / (eta sigma^2)) steps; the floor is "
    "eta sigma^2 / (2 m (2 - eta k))",
    verdict="holds",
    seconds=2,
    power="600 chains a schedule: shares to 0.02, losses to 5 %; 3,000 with --full",
    en=Words(
        title="Noise early finds the better minimum, noise late keeps from settling",
        claimed="Early in a run a small batch explores; later its noise makes the weight "
        "hover about the minimum, so the batch should grow.",
        assumed="There is a better minimum behind a barrier that the early noise can "
        "pass and the late noise cannot.",
        seen="All chains begin in the worse of two wells. The large batch stays there. "
        "The small one finds the better well and hovers high above its bottom. The "
        "batch that grows finds it and settles; how high any batch hovers the formula "
        "says. The same batches in reverse end as high as the small one.",
    ),
    zh=Words(
        title="早期的噪声找到更好的极小值，后期的噪声妨碍安定",
        claimed="训练初期小批量有利于探索；后期它的噪声使参数在极小值附近徘徊，"
        "所以批量应逐渐增大。",
        assumed="在势垒另一边有更好的极小值，早期的噪声能越过，后期的不能。",
        seen="所有链从较差的势阱出发。大批量一直留在那里；小批量找到较好的势阱，却悬在谷底"
        "上方很高处；逐渐增大的批量既找到它又安定下来，悬多高由公式给出。把同样的批量"
        "倒过来用，最后和小批量一样高。",
    ),
    run=run,
)
