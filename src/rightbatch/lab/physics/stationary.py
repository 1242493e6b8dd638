"""The stationary variance of SGD around a minimum of curvature k."""

from __future__ import annotations

from functools import partial

import numpy as np

from rightbatch.core.estimate import Estimate
from rightbatch.lab.check import Check, equals
from rightbatch.lab.claim import Chart, Claim, Seen, Trial, Words
from rightbatch.lab.physics.chains import Array, Noise, after, batch_noise, walk
from rightbatch.lab.plots import Series, plot
from rightbatch.lab.samples import mean_of
from rightbatch.landscape.stationary import stationary_variance

LR, NOISE, BATCH = 0.1, 4.0, 8
PRODUCTS = (0.1, 0.25, 0.5, 1.0, 1.5, 1.9)  # eta k
STEPS = 200  # to settle: the slowest forgets in 10, with momentum in 20
MOMENTUM = 0.9


def student_noise(rng: np.random.Generator, degrees: int = 5) -> Noise:
    """Of the same variance as a batch's, with heavy tails."""
    scale = np.sqrt(NOISE / BATCH * (degrees - 2) / degrees)
    return lambda at: scale * rng.standard_t(degrees, at.shape)


def run(trial: Trial) -> Seen:
    """Quadratic bowls of six curvatures, thousands of chains in each."""
    rng = np.random.default_rng(trial.seed)
    curvatures = np.divide(PRODUCTS, LR)
    start = np.zeros((len(PRODUCTS), trial.size(4000, 20000)))
    law = partial(stationary_variance, LR, NOISE, batch=BATCH)

    def slope(at: Array) -> Array:
        return curvatures[:, None] * at

    def variances(noise: Noise, momentum: float = 0.0) -> dict[float, Estimate]:
        trial.tell(f"momentum {momentum}")
        chains = walk(start, slope, LR, noise, momentum)
        after(chains, STEPS)
        squares = np.mean([after(chains, 40) ** 2 for _ in range(4)], axis=0)
        return {p: mean_of(row) for p, row in zip(PRODUCTS, squares, strict=True)}

    theory = {p: law(curvature=p / LR) for p in PRODUCTS}
    normal = variances(batch_noise(rng, NOISE, BATCH))
    tailed = variances(student_noise(rng))
    heavy = variances(batch_noise(rng, NOISE, BATCH), MOMENTUM)

    def check(
        what: str, seen: Estimate, exact: float, wrong: dict[str, float]
    ) -> Check:
        """Of the ratio to the formula."""
        ratios = {name: value / exact for name, value in wrong.items()}
        what, seen = f"variance over the formula, {what}", seen.scale(1 / exact)
        return equals(what, 1.0, seen, margin=0.08, wrong=ratios)

    flat, sharp, edge, mu = PRODUCTS[0], 1.0, PRODUCTS[-1], MOMENTUM
    heat = LR * NOISE / (2 * BATCH)
    plain = {p: {"T / k": heat * LR / p} for p in PRODUCTS}
    faster = {"only a larger rate": heat * LR / (1 - mu), "none": theory[sharp]}
    moved = law(curvature=sharp / LR, momentum=mu)
    half = {"sigma^2 / 2": theory[flat] / 2}
    ratio = normal[flat].value / normal[sharp].value
    what = "wider where it is flat: eta k = 0.1 over 1"
    wrong = {"alike": 1.0, "1/k": 10}
    wider = theory[flat] / theory[sharp]
    checks = (
        check("eta k = 0.1", normal[flat], theory[flat], half),
        check("eta k = 1.9", normal[edge], theory[edge], plain[edge]),
        check("eta k = 1.5, heavy tails", tailed[1.5], theory[1.5], plain[1.5]),
        check("eta k = 1, momentum 0.9", heavy[sharp], moved, faster),
        equals(what, wider, ratio, within=0.1, wrong=wrong),
    )
    line = np.linspace(0.08, 1.93, 50).tolist()
    lines = [[law(curvature=p / LR, momentum=m) for p in line] for m in (0, mu)]
    series = [
        Series("SGD", PRODUCTS, list(normal.values()), "points"),
        Series("heavy-tailed noise", PRODUCTS, list(tailed.values()), "points"),
        Series("momentum 0.9", PRODUCTS, list(heavy.values()), "points"),
        Series("formula", line, lines[0], "dashed"),
        Series("formula, momentum", line, lines[1], "dashed"),
        Series("T / k", line, [heat * LR / p for p in line]),
    ]
    chart = plot(series, "learning rate x curvature", "variance of the weight", log="y")
    caption = "Towards the edge of stability the variance grows; T / k misses that."
    zh = "接近稳定边界时方差又增大；T / k 看不到这一点。"
    return Seen(checks, (Chart(caption, zh, chart),))


CLAIM = Claim(
    id="stationary-variance",
    texts=("3 隐式正则化与泛化: Var(w) ~ 1 / (k (2 - eta k))",),
    papers=("Mandt et al. 2017, arXiv:1704.04289", "Yaida 2018, arXiv:1810.00004"),
    theory="Var(w) = eta sigma^2 / (m k (2 - eta k)); with momentum mu eta (1 + mu) "
    "sigma^2 / (m k (1 - mu) (2 (1 + mu) - eta k))",
    verdict="holds",
    seconds=1,
    power="16,000 draws a curvature: ratios to 0.02, so that T / k is told from eta k "
    "= 0.25 on; 80,000 with --full",
    en=Words(
        title="The weight never comes to rest: its variance around a minimum",
        claimed="Near a minimum of curvature k noise keeps the weight moving, more so "
        "where it is flat.",
        assumed="A quadratic loss, noise of the same variance everywhere, of any "
        "distribution.",
        seen="SGD in six bowls settles at the variance of the formula, from flat ones "
        "to the edge of stability, with heavy-tailed noise and momentum too. Whether "
        "it therefore stays longer in flat wells is another question: see "
        "flat-over-sharp.",
    ),
    zh=Words(
        title="参数永不静止：极小值附近的方差",
        claimed="在曲率为 k 的极小值附近，噪声使参数不停晃动，越平坦晃得越宽。",
        assumed="二次损失；噪声方差处处相同，分布任意。",
        seen="六个碗中的 SGD 都停在公式给出的方差上：从平坦处直到稳定边界，重尾噪声和动"
        "量下也是如此。它是否因此更久地停留在平坦的阱中是另一个问题，见 "
        "flat-over-sharp。",
    ),
    run=run,
)
