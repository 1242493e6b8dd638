"""SGD occupies wells as Boltzmann's law has it, at T = eta sigma^2 / (2m)."""

from __future__ import annotations

import numpy as np

from rightbatch.core.estimate import Estimate
from rightbatch.lab.check import at_least, equals
from rightbatch.lab.claim import Chart, Claim, Seen, Trial, Words
from rightbatch.lab.physics.chains import LOOK_UP, after, batch_noise, walk
from rightbatch.lab.physics.wells import DoubleWell
from rightbatch.lab.plots import Series, plot
from rightbatch.lab.samples import mean_of

WELL = DoubleWell(0.1)
LR, NOISE = 0.02, 200.0
BATCHES = np.array([4, 6, 8, 10])
BINS = np.linspace(-1.8, 1.8, 46)


def heat(batch: float) -> float:
    """The temperature lr sigma^2 / (2 m)."""
    return LR * NOISE / (2 * batch)


def run(trial: Trial) -> Seen:
    """All chains start in the worse well; where are they much later?"""
    rng = np.random.default_rng(trial.seed)
    _, saddle, right = WELL.places
    coldest = int(BATCHES[-1])
    kramers = WELL.passage_time(heat(coldest)) / LR
    chains = walk(
        np.full((len(BATCHES), trial.size(500, 3000)), right),
        WELL.slope,
        LR,
        batch_noise(rng, NOISE, BATCHES[:, None]),
    )

    def left_shares(looks: int) -> list[Estimate]:
        """Of each batch: the mean over chains of their time in the left well."""
        left = np.mean([after(chains, LOOK_UP) <= saddle for _ in range(looks)], axis=0)
        return [mean_of(row) for row in left]

    after(chains, round(kramers / 3))
    early = left_shares(1)
    trial.tell("ten mean escape times")
    after(chains, round(10 * kramers))
    late = left_shares(round(3 * kramers / LOOK_UP))
    middle = list(BATCHES).index(8)
    seen = np.concatenate([after(chains, 200)[middle] for _ in range(30)])
    heights, _ = np.histogram(seen, BINS, density=True)
    exact = [WELL.left_share(heat(b)) for b in BATCHES]

    def odds(share: float) -> float:
        return share / (1 - share)

    checks = (
        *(
            equals(
                f"share of time in the deeper well at batch {BATCHES[i]}",
                exact[i],
                late[i],
                margin=0.05,
                wrong={
                    "T = eta sigma^2 / m": WELL.left_share(2 * heat(BATCHES[i])),
                    "T = eta sigma^2 / (4 m)": WELL.left_share(heat(BATCHES[i]) / 2),
                },
            )
            for i in (middle, len(BATCHES) - 1)
        ),
        at_least(
            "odds by Boltzmann over those seen after a third of the mean escape time",
            3.0,
            odds(exact[-1]) / odds(max(early[-1].value, 1e-3)),
            part="limit",
            wrong={"seen after ten": odds(exact[-1]) / odds(late[-1].value)},
        ),
    )
    line = np.linspace(4, 10, 25)
    shares = plot(
        [
            Series("after ten escape times", BATCHES, late, "points"),
            Series(
                "Boltzmann", line, [WELL.left_share(heat(b)) for b in line], "dashed"
            ),
            Series("after a third of one", BATCHES, early, "points"),
        ],
        "batch size",
        "share in the deeper well",
    )
    centres = (BINS[1:] + BINS[:-1]) / 2
    w = np.linspace(-1.8, 1.8, 91)
    law = np.exp(-WELL.value(w) / heat(8))
    law /= law.sum() * (w[1] - w[0])
    density = plot(
        [
            Series("chains at batch 8", centres, list(heights), "points"),
            Series("exp(-U / T) / Z", w, list(law), "dashed"),
        ],
        "weight w",
        "density",
        zero=True,
    )
    return Seen(
        checks,
        (
            Chart(
                "The larger the batch, the more chains sit in the deeper well, once "
                "they have had the time.",
                "批量越大，待在较深势阱中的链越多，只要给够时间。",
                shares,
            ),
            Chart(
                "Where the chains of batch 8 are, and Boltzmann's density.",
                "批量为 8 的链所在的位置，与玻尔兹曼密度。",
                density,
            ),
        ),
    )


CLAIM = Claim(
    id="boltzmann",
    texts=("2 从比特到原子：优化的物理学: 朗之万动力学, T = eta sigma^2 / (2m)",),
    papers=("Jastrzebski et al. 2017, arXiv:1711.04623",),
    theory="p(w) proportional to exp(-U(w) / T), T = eta sigma^2 / (2m)",
    verdict="holds if",
    seconds=6,
    power="500 chains a batch: shares to 0.012, so that a factor of 2 in T is told "
    "apart; 3,000 with --full",
    en=Words(
        title="SGD visits wells as a gas at temperature T does",
        claimed="Mini-batch SGD moves like a particle in a heat bath, whose temperature "
        "is set by learning rate and batch.",
        assumed="Noise alike everywhere and in all directions, a learning rate small "
        "against one over the curvature, and a run much longer than an escape takes.",
        seen="All chains begin in the worse of two wells. After ten mean escape times "
        "of the coldest batch their shares and their whole density are Boltzmann's. "
        "After a third of one escape time the odds are off several times over: most "
        "have not left yet.",
        answer="the run lasts many escape times; before that the start decides",
    ),
    zh=Words(
        title="SGD 像温度为 T 的气体那样占据势阱",
        claimed="小批量 SGD 如同热浴中的粒子，温度由学习率和批量决定。",
        assumed="噪声处处相同、各向同性；学习率远小于曲率的倒数；训练远长于一次逃离。",
        seen="所有链从较差的势阱出发。过了最冷批量的十个平均逃离时间，各阱的占比与整个密度"
        "都符合玻尔兹曼分布；只过三分之一个逃离时间，占比之比要差好几倍，大多数链还没离开。",
        answer="训练持续许多个逃离时间；在那之前由起点决定",
    ),
    run=run,
)
