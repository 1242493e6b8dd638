"""Whether SGD prefers a flat minimum to a sharp one of equal depth, and why."""

from __future__ import annotations

import numpy as np

from rightbatch.core.estimate import Estimate
from rightbatch.lab.check import at_least, equals
from rightbatch.lab.claim import Chart, Claim, Seen, Trial, Words
from rightbatch.lab.physics.chains import LOOK_UP, Array, after, batch_noise, walk
from rightbatch.lab.plots import Series, plot
from rightbatch.lab.samples import mean_of

FLAT, SHARP, HEIGHT = 1.0, 25.0, 0.75  # curvatures, and the barrier between
BATCHES = (8, 12, 16, 20)
HEAT = 8.0  # eta sigma^2, the same at every rate: T = 4 / m
TIME = 60.0  # steps times eta: some twenty times as long as a sharp well holds


def slope(w: Array) -> Array:
    """Of two parabolas that meet at w = 0: the flat well left, the sharp one right."""
    left, right = np.sqrt(2 * HEIGHT / FLAT), np.sqrt(2 * HEIGHT / SHARP)
    return np.where(w < 0, FLAT * (w + left), SHARP * (w - right))


def variance(lr: float, w: Array, *, aligned: bool) -> Array:
    """Of one example's gradient: alike everywhere, or in proportion to curvature."""
    bend = np.where(w < 0, 1.0, SHARP / FLAT) if aligned else np.ones_like(w)
    return HEAT / lr * bend


def exact_odds(lr: float, batch: int, *, aligned: bool = False) -> float:
    """Flat over sharp, from the step's own transition probabilities on a grid."""
    # Zero, where the slope jumps, lies between two points.
    grid = np.arange(-649.5, 400 if aligned else 250) / 100
    middle = grid - lr * slope(grid)
    spread = lr * np.sqrt(variance(lr, grid, aligned=aligned) / batch)
    step = np.exp(-0.5 * ((grid - middle[:, None]) / spread[:, None]) ** 2)
    step /= step.sum(1, keepdims=True)
    system = step.T - np.eye(len(grid))
    system[-1] = 1.0  # instead of one equation: shares add up to one
    shares = np.linalg.solve(system, np.eye(len(grid))[-1])
    flat = shares[grid < 0].sum()
    return float(flat / (1 - flat))


def run(trial: Trial) -> Seen:
    """Chains in both wells, at three rates and with two kinds of noise."""
    rng = np.random.default_rng(trial.seed)
    chains = trial.size(500, 3000)
    batches = np.array(BATCHES)[:, None]

    def odds(lr: float, *, aligned: bool = False) -> list[Estimate]:
        trial.tell(f"eta k = {lr * SHARP:g}")
        noise = batch_noise(rng, lambda w: variance(lr, w, aligned=aligned), batches)
        start = np.tile([-1.0, 0.2], (len(BATCHES), chains // 2))
        walked = walk(start, slope, lr, noise)
        after(walked, max(round(TIME / lr), 4000))
        looks = [after(walked, LOOK_UP) < 0 for _ in range(200)]
        shares = [mean_of(row) for row in np.mean(looks, axis=0)]
        return [s.map(lambda x: x / max(1 - x, 1e-4)) for s in shares]

    gentle, edge, middle = 0.05 / SHARP, 1.5 / SHARP, 0.5 / SHARP
    small, large, aligned = odds(gentle), odds(edge), odds(middle, aligned=True)
    by_edge = [exact_odds(edge, b) for b in BATCHES]
    curved = [exact_odds(middle, b, aligned=True) for b in BATCHES]
    wider = (SHARP / FLAT) ** 0.5
    what = "odds flat to sharp, batch 8 over batch 20, small rate"
    ratio, wrong = small[0].value / small[-1].value, {"the same for every batch": 1.0}
    by_batch = at_least(what, 1.5, ratio, wrong=wrong)
    what = "odds flat to sharp at a small rate, mean over batches"
    mean, wrong = mean_of([s.value for s in small]), {"k_s / k_f": 25.0, "alike": 1.0}
    by_width = equals(what, wider, mean, margin=0.7, part="correction", wrong=wrong)
    what = "the same at eta k_s = 1.5, batch 16"
    exact, wrong = by_edge[2], {"from T alone": wider, "batch 8": by_edge[0]}
    by_rate = equals(what, exact, large[2], within=0.15, part="correction", wrong=wrong)
    what = "the same with noise in proportion to curvature, batch 8"
    seen, wrong = (
        aligned[0],
        {"noise alike everywhere": small[0].value, "k_s / k_f": 25},
    )
    by_noise = equals(what, curved[0], seen, within=0.2, part="correction", wrong=wrong)
    series = [
        Series("small rate", BATCHES, small, "points"),
        Series("eta k_s = 1.5", BATCHES, large, "points"),
        Series("noise follows curvature", BATCHES, aligned, "points"),
        Series("sqrt(k_s / k_f)", (8, 20), (wider, wider), "dashed"),
        Series("exact, eta k_s = 1.5", BATCHES, by_edge, "dashed"),
        Series("exact, follows curvature", BATCHES, curved, "dashed"),
    ]
    chart = plot(series, "batch size", "odds, flat well to sharp well", log="y")
    caption = (
        "Beyond its width, only a rate near the edge or curved noise favours flat."
    )
    zh = "除宽度之外，只有学习率接近稳定边界，或噪声随曲率变化时，才偏好平坦。"
    return Seen((by_batch, by_width, by_rate, by_noise), (Chart(caption, zh, chart),))


CLAIM = Claim(
    id="flat-over-sharp",
    texts=(
        "2 隐藏的天才：噪声是特性，而非缺陷: 小批量更喜欢平坦最小值",
        "3 隐式正则化与泛化: 在平坦区域停留的时间更长",
        "5 关于“好”的辩证：平坦 vs 尖锐",
    ),
    papers=(
        "Wu et al. 2018, How SGD selects the global minima",
        "Xie et al. 2020, arXiv:2002.03495",
    ),
    theory="equal depth, noise alike everywhere, eta -> 0: flat : sharp = sqrt(k_s / "
    "k_f) at any T; else by the step's exact transition probabilities",
    verdict="fails as written",
    seconds=5,
    power="500 chains a batch: odds at a small rate to 6 %, at the edge to 3 %; 3,000 "
    "with --full",
    en=Words(
        title="Does a small batch prefer flat minima?",
        claimed="Noise kicks the weight out of sharp minima and leaves it in flat "
        "ones; the smaller the batch, the more so.",
        assumed="In the picture of a temperature: equal depth, small steps, noise "
        "alike everywhere.",
        seen="One of two wells of equal depth has 25 times the curvature. At a small "
        "rate SGD spends five parts in six in the flat one, as it is five times as "
        "wide, at every batch. Near the sharp one's limit of stability, or with noise "
        "that grows with curvature, nearly all chains are in the flat one, and more so "
        "at a large batch that has had the time.",
        answer="width, a rate near 2 / k_s and noise that follows curvature make the "
        "preference, not the batch; a small one only gets there sooner, "
        "see escape-time",
    ),
    zh=Words(
        title="小批量更喜欢平坦极小值吗？",
        claimed="噪声把参数踢出尖锐极小值，留在平坦极小值；批量越小越是如此。",
        assumed="按“温度”图景：一样深，步子小，噪声处处相同。",
        seen="两个一样深的势阱，一个的曲率是另一个的 25 倍。学习率小时，无论批量，SGD "
        "有六分之五的时间在平坦阱，因为它宽五倍。接近尖锐阱的稳定极限，或噪声随曲率增大"
        "时，几乎所有链都在平坦阱；只要时间够，批量越大反而越是如此。",
        answer="偏好来自宽度、接近 2 / k_s 的学习率和随曲率变化的噪声，而不是批量；小批"
        "量只是更快到达，见 escape-time",
    ),
    run=run,
)
