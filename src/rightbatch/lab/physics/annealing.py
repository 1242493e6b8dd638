"""A batch that grows logarithmically ends in the global minimum, if slowly enough."""

from __future__ import annotations

import math

import numpy as np

from rightbatch.lab.check import at_least, at_most, equals
from rightbatch.lab.claim import Chart, Claim, Seen, Trial, Words
from rightbatch.lab.physics.chains import Array, batches_of, geometric
from rightbatch.lab.physics.wells import DoubleWell
from rightbatch.lab.plots import Series, plot
from rightbatch.schedules.schedule import Anneal, Schedule

WELL = DoubleWell(0.3, noise=1000.0)  # eta sigma^2 = 20: whole batches of tens
FIRST, LAST = 30, 300  # T = 1/3, and 1/30 at the end of the geometric run


def logarithmic(c: float, steps: int) -> Anneal:
    """T = c / log(k + k0) from the first batch on: b = eta sigma^2 log(k + k0) / (2 c).

    The schedule counts k in examples over the first batch.
    """
    scale = WELL.heat(1) / c
    offset, examples = math.exp(FIRST / scale), steps * FIRST
    for _ in range(20):  # a run of so many steps is as long as its batches are large
        last = scale * math.log(offset + examples / FIRST)
        examples = round(steps * last)
    return Anneal(FIRST, round(last), examples, form="logarithmic")


def for_ever(schedule: Schedule, steps: Array) -> Array:
    """The left well's share at steps far beyond what can be run, by two rates."""
    spans = np.diff(steps, prepend=0)
    examples, batches = 0, []
    for span in spans:
        batches.append(schedule.batch_size(examples))
        examples += int(span) * batches[-1]
    return WELL.shares_along(np.array(batches), spans)


def run(trial: Trial) -> Seen:
    """Chains from the worse well under three schedules, and two rates beyond."""
    rng = np.random.default_rng(trial.seed)
    left, saddle, _ = WELL.places
    steps, end, most = trial.size(20_000, 60_000), 10**9, 2 * WELL.barrier
    schedules = {
        "logarithmic, c = 2 d*": (logarithmic(most, n) for n in (steps, end)),
        "logarithmic, c = d* / 2": (logarithmic(most / 4, n) for n in (steps, end)),
        "geometric": (geometric(FIRST, LAST, steps) for _ in range(2)),
    }
    short, long = zip(*schedules.values(), strict=True)
    looks = sorted({round(x) for x in np.geomspace(200, steps, 10)})
    at = WELL.under(rng, short, trial.size(800, 2000), looks)
    seen = (at <= saddle).mean(2).T
    slow_loss, _, quick_loss = (WELL.value(at[-1]) - WELL.value(left)).mean(1)
    slow, froze, _ = map(float, seen[:, -1])
    times = np.unique(np.geomspace(1, end, 90).astype(int))
    laws = [for_ever(schedule, times) for schedule in long]
    slow_end, froze_end, quick_end = (float(law[-1]) for law in laws)
    by_rates = float(WELL.shares_along(np.array(batches_of(short[0], steps)))[-1])
    what = "share in the global well, c = 2 d*, against two rates"
    wrong = {"c = d* / 2": froze_end}
    follows = equals(what, by_rates, slow, margin=0.06, wrong=wrong)
    what = "the same after 1e9 steps, by the two rates"
    reaches = at_least(what, 0.99, slow_end, wrong=wrong | {"geometric": quick_end})
    what = "share in the global well, c = d* / 2"
    stuck = at_most(what, 0.2, froze, part="limit", wrong={"c = 2 d*": slow})
    what = "excess loss at the end of the run: logarithmic over geometric"
    ratio, wrong = float(slow_loss / quick_loss), {"the guarantee is faster": 1.0}
    dearer = at_least(what, 1.5, ratio, part="limit", wrong=wrong)
    both = list(zip(schedules, seen, laws, strict=True))
    series = [Series(f"{n}: SGD", looks, row, "points") for n, row, _ in both]
    spots = times.tolist()
    series += [Series(f"{n}: rates", spots, list(y), "dashed") for n, _, y in both]
    chart = plot(series, "steps", "share in the global minimum's well", log="x")
    caption = "Slow logarithmic growth improves for ever; the others freeze."
    zh = "足够慢的对数增长永远在改善；另外两种会冻结。"
    return Seen((follows, reaches, stuck, dearer), (Chart(caption, zh, chart),))


CLAIM = Claim(
    id="annealing",
    texts=("2 从比特到原子：优化的物理学: 随迭代次数对数地增加批量",),
    papers=("Hajek 1988, Cooling schedules for optimal annealing",),
    theory="b_k = eta sigma^2 log(k + k0) / (2 c) ends in the global minimum iff c >= "
    "d*, the depth of the deepest other well",
    verdict="holds if",
    seconds=3,
    power="800 chains: shares to 0.01, losses to 10 %; 20,000 steps, 60,000 with "
    "--full; beyond them two exact rates",
    en=Words(
        title="Cooling by a growing batch: the logarithm's guarantee and its price",
        claimed="A batch that grows with the logarithm of the steps ends in the global "
        "minimum.",
        assumed="Its speed fits the depth d* of the deepest wrong well, which nobody "
        "knows beforehand.",
        seen="Chains begin in the wrong well under the product's schedules. Grown "
        "slowly, all reach the global one in the end; four times as fast, nearly all "
        "stay for ever. A geometric schedule freezes with a few per cent in the wrong "
        "well, but after as many steps its loss is lower.",
        answer="c is at least d* and the run never ends; in one that does, grow "
        "geometrically",
    ),
    zh=Words(
        title="靠增大批量来冷却：对数的保证与代价",
        claimed="批量随步数对数增长，最终到达全局最小值。",
        assumed="增长速度符合最深错误势阱的深度 d*，而它事先未知。",
        seen="链从错误的势阱出发，使用本产品的批量方案。增长慢时最终全部到达全局势阱；"
        "快四倍时几乎全部永远留下。几何增长会冻结，留下百分之几，但在同样步数之后损失更"
        "低。",
        answer="c 不小于 d* 且训练永不结束；在有限的训练中应几何增长",
    ),
    run=run,
)
