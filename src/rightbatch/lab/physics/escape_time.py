"""The time to escape a minimum grows exponentially with the batch."""

from __future__ import annotations

import math

import numpy as np

from rightbatch.lab.check import equals
from rightbatch.lab.claim import Chart, Claim, Seen, Trial, Words
from rightbatch.lab.physics.chains import passages
from rightbatch.lab.physics.wells import DoubleWell
from rightbatch.lab.plots import Series, plot
from rightbatch.lab.samples import mean_of, slope_of

WELL = DoubleWell(0.1, noise=200.0)
BATCHES = (4, 6, 8, 10, 12)
CHAINS = 2000


def run(trial: Trial) -> Seen:
    """Mean steps from the worse bottom to the better one, for five batches."""
    rng = np.random.default_rng(trial.seed)
    left, _, right = WELL.places
    exact = [WELL.passage_steps(b) for b in BATCHES]
    times = []
    for batch, mean in zip(BATCHES, exact, strict=True):
        trial.tell(f"batch {batch}")
        chains = WELL.trapped(rng, batch, CHAINS)
        # Without it the first passages would all be at one time.
        passages(chains, right, left, round(3 * exact[0]))
        steps = round(trial.size(2.5, 15) * mean)
        often = mean_of(passages(chains, right, left, steps))
        times.append(often.map(lambda n, steps=steps: steps / n, "steps"))
    per_depth = 2 / (WELL.lr * WELL.noise)
    theory = WELL.barrier * per_depth
    hotter = np.mean([WELL.passage_steps(b / 2) for b in BATCHES] / np.array(exact))
    slope = slope_of(BATCHES, [math.log(t.value) for t in times])
    what = "slope of log(mean steps to escape) against the batch"
    wrong = {"2 forgotten": theory / 2, "other well": theory + WELL.gap * per_depth}
    high = equals(what, theory, slope, margin=0.03, wrong=wrong)
    what = "the same slope by the first-passage integral"
    integral = slope_of(BATCHES, [*map(math.log, exact)]).value
    wrong = {"Kramers": theory}
    near = equals(what, integral, slope, margin=0.012, wrong=wrong)
    what = "mean steps over the first-passage integral, over all batches"
    ratio = mean_of([t.value / e for t, e in zip(times, exact, strict=True)])
    wrong = {"T = lr sigma^2 / B": float(hotter), "2 pi forgotten": 0.5 / math.pi}
    whole = equals(what, 1.0, ratio, margin=0.1, wrong=wrong)
    line = np.linspace(BATCHES[0], BATCHES[-1], 20).tolist()
    kramers = [WELL.kramers_time(WELL.heat(b)) / WELL.lr for b in line]
    integrals = [WELL.passage_steps(b) for b in line]
    series = [
        Series("measured", BATCHES, times, "points"),
        Series("first-passage integral", line, integrals, "dashed"),
        Series("Kramers, for high barriers", line, kramers, "line"),
    ]
    chart = plot(series, "batch size", "mean steps to escape", log="y")
    caption = "From the worse well to the better one; lines have no free number."
    zh = "从较差势阱到较好势阱的平均步数；两条线没有任何可调参数。"
    return Seen((high, near, whole), (Chart(caption, zh, chart),))


CLAIM = Claim(
    id="escape-time",
    texts=(
        "2 从比特到原子：优化的物理学: T = eta sigma^2 / (2m), 增大批量就是冷却",
        "3 逃离局部最小值: 噪声把参数踢出局部最小值",
    ),
    papers=("Kramers 1940, Brownian motion in a field of force",),
    theory="log E[steps] rises by 2 dU / (eta sigma^2) an example; E[steps] = (1 / eta "
    "T) int e^(U/T) int e^(-U/T)",
    verdict="holds",
    seconds=4,
    power="5,000 escapes a batch: the slope to 0.003, so 0.43 (exact) is told from "
    "0.45 (high barriers); 30,000 with --full",
    en=Words(
        title="Time to escape grows exponentially with the batch",
        claimed="Noise kicks the weight out of a poor minimum; a larger batch cools, "
        "so that it stays for longer.",
        assumed="A barrier several times T, a small rate, noise alike everywhere, "
        "independent draws.",
        seen="Chains sit in the worse of two wells, for five batches. The logarithm of "
        "the mean number of steps to the better one is a straight line in the batch: "
        "each example more multiplies the wait by one factor. The exact integral fits "
        "with no free number; Kramers' formula comes close as barriers grow.",
    ),
    zh=Words(
        title="逃离时间随批量指数增长",
        claimed="噪声把参数踢出较差的极小值；批量越大越冷，留得越久。",
        assumed="势垒是 T 的几倍，学习率小，噪声处处相同，样本独立抽取。",
        seen="五种批量的链从较差的势阱出发。到达较好势阱的平均步数取对数后是批量的直"
        "线：每加一个样本，等待就乘上同一个因子。精确积分没有可调参数就吻合；势垒越高，"
        "克拉默斯公式越接近。",
    ),
    run=run,
)
