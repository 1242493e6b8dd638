"""SGD occupies wells as Boltzmann's law has it, at T = eta sigma^2 / (2m)."""

from __future__ import annotations

import numpy as np

from rightbatch.core.estimate import Estimate
from rightbatch.lab.check import Check, at_least, equals
from rightbatch.lab.claim import Chart, Claim, Seen, Trial, Words
from rightbatch.lab.physics.chains import LOOK_UP, after
from rightbatch.lab.physics.wells import DoubleWell
from rightbatch.lab.plots import Series, plot
from rightbatch.lab.samples import mean_of

WELL = DoubleWell(0.1, noise=200.0)
BATCHES = (4, 6, 8, 10)


def expected(batch: float, heating: float = 1.0) -> float:
    """The deeper well's share by Boltzmann, at so many times the temperature."""
    return WELL.left_share(WELL.heat(batch) * heating)


def run(trial: Trial) -> Seen:
    """All chains start in the worse well; where are they much later?"""
    rng = np.random.default_rng(trial.seed)
    shape = (len(BATCHES), trial.size(500, 3000))
    chains = WELL.trapped(rng, np.array(BATCHES)[:, None], shape)
    escape = WELL.passage_steps(10)

    def left_shares(looks: int) -> list[Estimate]:
        """Of each batch: the mean over chains of their time in the left well."""
        seen = [after(chains, LOOK_UP) <= WELL.places[1] for _ in range(looks)]
        return [mean_of(row) for row in np.mean(seen, axis=0)]

    after(chains, round(escape / 3))
    early = left_shares(1)
    trial.tell("ten mean escape times")
    after(chains, round(10 * escape))
    late = left_shares(round(3 * escape / LOOK_UP))

    def odds_off(share: float) -> float:
        exact, share = expected(10), max(share, 1e-3)
        return exact / (1 - exact) * (1 - share) / share

    def share_at(i: int) -> Check:
        b = BATCHES[i]
        wrong = {"T = eta sigma^2 / m": expected(b, 2), "T / 2": expected(b, 0.5)}
        what = f"share of time in the deeper well at batch {b}"
        return equals(what, expected(b), late[i], margin=0.05, wrong=wrong)

    what = "odds by Boltzmann over those seen after a third of the mean escape time"
    short, wrong = odds_off(early[-1].value), {"after ten": odds_off(late[-1].value)}
    too_soon = at_least(what, 3.0, short, part="limit", wrong=wrong)
    line = np.linspace(4, 10, 25).tolist()
    series = [
        Series("after ten escape times", BATCHES, late, "points"),
        Series("Boltzmann", line, [expected(b) for b in line], "dashed"),
        Series("after a third of one", BATCHES, early, "points"),
    ]
    chart = plot(series, "batch size", "share in the deeper well")
    caption = (
        "The larger the batch, the more chains are in the deeper well, given time."
    )
    zh = "批量越大，待在较深势阱中的链越多，只要给够时间。"
    return Seen((share_at(2), share_at(3), too_soon), (Chart(caption, zh, chart),))


CLAIM = Claim(
    id="boltzmann",
    texts=("2 从比特到原子：优化的物理学: 朗之万动力学, T = eta sigma^2 / (2m)",),
    papers=("Jastrzebski et al. 2017, arXiv:1711.04623",),
    theory="p(w) proportional to exp(-U(w) / T), T = eta sigma^2 / (2m)",
    verdict="holds if",
    seconds=5,
    power="500 chains a batch: shares to 0.012, so that a factor of 2 in T is told; "
    "3,000 with --full",
    en=Words(
        title="SGD visits wells as a gas at temperature T does",
        claimed="SGD moves like a particle in a heat bath of a temperature set by rate "
        "and batch.",
        assumed="Noise alike everywhere, a small rate, a run much longer than an "
        "escape.",
        seen="All chains begin in the worse of two wells. After ten mean escape times "
        "of the coldest batch their shares are Boltzmann's; after a third of one the "
        "odds are off several times over, as most have not left yet.",
        answer="the run lasts many escape times; before that the start decides",
    ),
    zh=Words(
        title="SGD 像温度为 T 的气体那样占据势阱",
        claimed="SGD 如同热浴中的粒子，温度由学习率和批量决定。",
        assumed="噪声处处相同，学习率小，训练远长于一次逃离。",
        seen="所有链从较差的势阱出发。过了最冷批量的十个平均逃离时间，占比符合玻尔兹曼"
        "分布；只过三分之一个时，占比之比差好几倍，大多数链还没离开。",
        answer="训练持续许多个逃离时间；在那之前由起点决定",
    ),
    run=run,
)
