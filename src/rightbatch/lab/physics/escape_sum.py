"""A minimum of the whole loss that is none of a mini-batch's is left."""

from __future__ import annotations

import itertools

import numpy as np

from rightbatch.data.order.draws import Replacement, Shuffled
from rightbatch.data.order.order import Cursor
from rightbatch.lab.check import at_least, at_most, equals
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
    _, saddle, right = WELL.places
    trial.tell("drawn anew")
    signs = drawn(Replacement(2), trial.size(1000, 8000), trial.seed)
    anew = paths(signs)
    trial.tell("by epochs")
    epochs = paths(drawn(Shuffled(2), trial.size(4, 30), trial.seed))
    whole = paths(np.zeros((STEPS, 1)))
    ever = [float((path < saddle).any(0).mean()) for path in (anew, epochs, whole)]
    checks = (
        equals(
            "first step of chains that draw L2",
            WELL.lr * PULL,
            float(anew[0][signs[0] < 0].mean() - right),
            margin=1e-9,
            wrong={"the gradient of the sum": 0.0},
        ),
        at_least(
            "share of chains beyond the saddle in the end, drawn anew",
            0.8,
            float((anew[-1] < saddle).mean()),
            wrong={"full batch": ever[2]},
        ),
        at_most(
            "share ever beyond the saddle, each loss once an epoch",
            0.05,
            ever[1],
            part="limit",
            wrong={"drawn anew": ever[0]},
        ),
    )
    looks = np.unique(np.geomspace(1, STEPS, 40).astype(int)) - 1

    def beyond(name: str, path: Array) -> Series:
        return Series(name, looks + 1, (path[looks] < saddle).mean(1))

    law = WELL.shares_along(np.ones(STEPS))
    picture = Chart(
        "Independent draws climb out; pairs that cancel never do, nor do full batches.",
        "独立抽样能爬出总损失的极小值；成对抵消的轮次不能，全批量也不能。",
        plot(
            [
                beyond("one of two losses, drawn anew", anew),
                beyond("each once an epoch", epochs),
                beyond("both: full batch", whole),
                Series("T = eta sigma^2 / 2", looks + 1, law[looks], "dashed"),
            ],
            "steps",
            "share of chains beyond the saddle",
            log="x",
        ),
    )
    return Seen(checks, (picture,))


CLAIM = Claim(
    id="escape-of-sum",
    texts=(
        "3 逃离局部最小值: grad L = (grad L1 + grad L2) / 2 = 0, grad L2 != 0",
        "1 三种导航流派: SGD 的噪声有时能帮你跳出局部最小值",
        "2 隐藏的天才：噪声是特性，而非缺陷: 全批量走进最近的最小值",
    ),
    papers=("Smith et al. 2021, arXiv:2101.12176",),
    theory="the first step on L2 alone is -eta grad L2; drawn anew the chain is at "
    "T = eta |grad L2|^2 / 2",
    verdict="holds if",
    seconds=3,
    power="1,000 chains drawn anew: their share to 0.01; 4 by epochs, which all do the "
    "same; 8,000 and 30 with --full",
    en=Words(
        title="A minimum of the sum need not hold a mini-batch",
        claimed="Where the mean of two losses has a poor local minimum, each of the two "
        "still has a slope, so a step on one of them pushes the weight out.",
        assumed="Examples are drawn independently; their pulls add up to a random walk.",
        seen="The first step is that of the single loss. With independent draws nearly "
        "all chains pass the saddle into the better well; the full batch stays for "
        "ever. If each loss comes once an epoch, the second step takes back the first "
        "and no chain leaves: one push moves the weight, escaping takes many in a row.",
        answer="draws are independent (or one push is as wide as the well); pairs in "
        "reshuffled epochs cancel and stay",
    ),
    zh=Words(
        title="总损失的极小值不一定留得住小批量",
        claimed="两个损失的平均有一个较差的局部极小值，而单个损失在那里仍有坡度，"
        "所以只看其中一个的一步会把参数推出去。",
        assumed="样本独立抽取，推力累积成随机游走。",
        seen="第一步正是单个损失的一步。独立抽取时几乎所有链都越过鞍点进入较好的势阱；"
        "全批量永远不动。如果每轮每个损失恰好出现一次，第二步就抵消第一步，没有链能离开："
        "一次推动只是移动，逃离需要连续许多次同向的推动。",
        answer="样本独立抽取（或一次推动就有势阱那么宽）；逐轮洗牌时成对抵消，留在原处",
    ),
    run=run,
)
