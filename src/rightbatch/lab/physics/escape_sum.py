"""A minimum of the whole loss that is none of a mini-batch's is left."""

from __future__ import annotations

import itertools

import numpy as np

from rightbatch.data.order.draws import Replacement, Shuffled
from rightbatch.data.order.order import Cursor
from rightbatch.lab.check import at_least, at_most
from rightbatch.lab.claim import Chart, Claim, Seen, Trial, Words
from rightbatch.lab.physics.chains import Array, walk
from rightbatch.lab.physics.wells import DoubleWell
from rightbatch.lab.plots import Series, plot

PULL = 3.0  # L1 and L2 are the loss plus and minus PULL w
WELL = DoubleWell(0.3, noise=PULL**2, lr=0.05)
STEPS = 3000


def drawn(order: Shuffled, chains: int, seed: int) -> Array:
    """Which loss each chain sees at each step (steps, chains), as +1 and -1.

    Every chain reads its own stretch of one long stream of two examples.
    """
    many = chains * STEPS
    cut, _ = order.cut(seed, Cursor(), many, stop=many)
    return 1.0 - 2.0 * cut.indices.reshape(chains, STEPS).T


def paths(signs: Array) -> Array:
    """Where the chains are after each step, from the worse minimum of the sum."""
    pulls = iter(PULL * signs)
    start = np.full(signs.shape[1], WELL.places[2])
    chains = walk(start, WELL.slope, WELL.lr, lambda at: next(pulls))
    return np.array([at.copy() for at in itertools.islice(chains, STEPS)])


def run(trial: Trial) -> Seen:
    """One of two losses a step, drawn anew or by epochs, against both at once."""
    saddle = WELL.places[1]
    trial.tell("drawn anew")
    anew = paths(drawn(Replacement(2), trial.size(1000, 8000), trial.seed))
    trial.tell("by epochs")
    epochs = paths(drawn(Shuffled(2), trial.size(4, 30), trial.seed))
    whole = paths(np.zeros((STEPS, 1)))
    ever = [float((path < saddle).any(0).mean()) for path in (anew, epochs, whole)]
    what = "share of chains beyond the saddle in the end, drawn anew"
    share = float((anew[-1] < saddle).mean())
    leaves = at_least(what, 0.8, share, wrong={"full batch": ever[2]})
    what = "share ever beyond the saddle, each loss once an epoch"
    stays = at_most(what, 0.05, ever[1], part="limit", wrong={"drawn anew": ever[0]})
    looks = sorted({round(x) - 1 for x in np.geomspace(1, STEPS, 40)})
    steps = [look + 1.0 for look in looks]
    law = WELL.shares_along(np.ones(STEPS))[looks]

    def beyond(name: str, path: Array) -> Series:
        return Series(name, steps, (path[looks] < saddle).mean(1).tolist())

    series = [
        beyond("one of two losses, drawn anew", anew),
        beyond("each once an epoch", epochs),
        beyond("both: full batch", whole),
        Series("T = eta sigma^2 / 2", steps, law.tolist(), "dashed"),
    ]
    chart = plot(series, "steps", "share of chains beyond the saddle", log="x")
    caption = (
        "Independent draws climb out; pairs that cancel and full batches never do."
    )
    zh = "独立抽样能爬出总损失的极小值；成对抵消的轮次不能，全批量也不能。"
    return Seen((leaves, stays), (Chart(caption, zh, chart),))


CLAIM = Claim(
    id="escape-of-sum",
    texts=(
        "3 逃离局部最小值: grad L1 + grad L2 = 0, grad L2 != 0",
        "1 三种导航流派: SGD 能跳出局部最小值",
        "2 隐藏的天才：噪声是特性，而非缺陷: 全批量走进最近的最小值",
    ),
    papers=("Smith et al. 2021, arXiv:2101.12176",),
    theory="each step is -eta grad L1 or -eta grad L2; drawn anew T = "
    "eta |grad L2|^2 / 2",
    verdict="holds if",
    seconds=3,
    power="1,000 chains drawn anew: their share to 0.01; 4 by epochs, which do all the "
    "same",
    en=Words(
        title="A minimum of the sum need not hold a mini-batch",
        claimed="Where the mean of two losses has a poor minimum each still has a "
        "slope, so a step on one of them pushes the weight out.",
        assumed="Examples are drawn independently: their pulls add up to a random "
        "walk.",
        seen="Drawn independently, nearly all chains end beyond the saddle; the full "
        "batch never moves. If each loss comes "
        "once an epoch, the second step takes back the first and no chain leaves: an "
        "escape needs many pushes in a row.",
        answer="draws are independent; pairs in reshuffled epochs cancel and stay",
    ),
    zh=Words(
        title="总损失的极小值不一定留得住小批量",
        claimed="两个损失的平均有较差的极小值，单个损失在那里仍有坡度，只看其中一个的一"
        "步会把参数推出去。",
        assumed="样本独立抽取，推力累积成随机游走。",
        seen="独立抽取时几乎所有链最后都在鞍点另一边；全批量永远不"
        "动。每轮每个损失恰好一次时，第二步抵消第一步，没有链能离开：逃离需要连续许多次"
        "推动。",
        answer="样本独立抽取；逐轮洗牌时成对抵消，留在原处",
    ),
    run=run,
)
