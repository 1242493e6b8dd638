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
    grid = np.linspace(-6.5, 4.0 if aligned else 2.5, 900)
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

    gentle, edge = 0.05 / SHARP, 1.5 / SHARP
    small, large = odds(gentle), odds(edge)
    with_curvature = odds(0.5 / SHARP, aligned=True)
    print(
        [str(x) for x in small],
        [str(x) for x in large],
        [str(x) for x in with_curvature],
    )
    print(
        [exact_odds(gentle, b) for b in BATCHES],
        [exact_odds(edge, b) for b in BATCHES],
        [exact_odds(0.5 / SHARP, b, aligned=True) for b in BATCHES],
    )
