"""The laws behind the first chapter against slow versions; its quick claims run."""

from itertools import combinations, permutations
from typing import Any

import numpy as np
import pytest
import torch
from scipy import optimize

from rightbatch.core.errors import MissingExtraError
from rightbatch.lab.chapters import claim_named
from rightbatch.lab.claim import run_claim
from rightbatch.lab.sampling import portfolio, rare_class, three_regimes
from rightbatch.lab.sampling.epochs_and_iterations import epoch_sizes
from rightbatch.lab.sampling.partly_trained import partly_trained
from rightbatch.lab.sampling.random_walk import mean_squared_displacement, walk


@pytest.mark.parametrize("name", ["three-regimes", "unbiased"])
def test_a_quick_claim_comes_to_its_verdict(name: str) -> None:
    assert run_claim(claim_named(name), seed=5).as_recorded


def test_the_scatter_of_a_path_is_that_over_all_shuffles(monkeypatch: Any) -> None:
    monkeypatch.setattr(three_regimes, "EXAMPLES", 6)
    monkeypatch.setattr(three_regimes, "STEPS", 3)
    points = np.array([-2.0, -1.0, 0.0, 0.5, 1.0, 1.5])
    points /= points.std()
    h, rate = 0.7, three_regimes.RATE
    places = []
    for order in permutations(points):
        place = 0.0
        for batch in np.reshape(order, (3, 2)):
            place -= rate * h * (place - batch.mean())
        places.append(place)
    law = three_regimes.variance(three_regimes.pulls(h), 2)
    assert law == pytest.approx(np.var(places), rel=1e-9)


def test_an_epoch_has_every_batch_whole_but_the_last() -> None:
    assert epoch_sizes(10, 4, seed=1) == [4, 4, 2]
    assert epoch_sizes(10, 4, seed=1, tail="drop") == [4, 4]


def test_the_variance_of_strata_is_that_over_all_batches(monkeypatch: Any) -> None:
    monkeypatch.setattr(rare_class, "BATCH", 4)
    monkeypatch.setattr(rare_class, "EXAMPLES", 9)
    monkeypatch.setattr(rare_class, "RARE", 3)
    data = rare_class.population(seed=0)
    features, labels, weights = data
    model = torch.nn.Linear(rare_class.FEATURES, 1)
    torch.nn.init.zeros_(model.weight)
    torch.nn.init.zeros_(model.bias)

    def gradient(rows: list[int], sampled: torch.Tensor) -> torch.Tensor:
        batch = (features[rows], labels[rows], weights[rows])
        value = rare_class.loss(model, (batch, sampled))
        gradients = torch.autograd.grad(value, list(model.parameters()))
        return torch.cat([g.flatten() for g in gradients]).double()

    # Two of three rare ones, two of six others, weighted by pi_s B / k_s.
    sampled = torch.tensor([3 / 9 * 4 / 2] * 2 + [6 / 9 * 4 / 2] * 2)
    every = torch.stack(
        [
            gradient([*rare, *others], sampled)
            for rare in combinations(range(3), 2)
            for others in combinations(range(3, 9), 2)
        ]
    )
    weighted = rare_class.each_gradient(data) * weights[:, None]
    torch.testing.assert_close(every.mean(0), weighted.mean(0), atol=1e-6, rtol=1e-5)
    law = rare_class.variance_by_strata(data, kept=2)
    assert law == pytest.approx(float(every.var(0, correction=0).sum()), rel=1e-5)


def test_the_best_shares_are_those_of_a_general_solver() -> None:
    rng = np.random.default_rng(0)
    returns = rng.normal(0.001, 0.02, (300, 5))
    mean, covariance = returns.mean(0), np.cov(returns.T)

    def loss(w: np.ndarray) -> float:
        return float(-(w @ mean - portfolio.AVERSION / 2 * w @ covariance @ w) * 1e4)

    solved = optimize.minimize(
        loss,
        np.full(5, 0.2),
        bounds=[(0, 1)] * 5,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        options={"ftol": 1e-12},
    )
    best = portfolio.best_weights(mean, covariance)
    assert best.sum() == pytest.approx(1)
    assert loss(best) == pytest.approx(solved.fun, abs=1e-5)
    assert best == pytest.approx(solved.x, abs=2e-3)


def test_the_data_of_the_portfolio_are_an_extra(monkeypatch: Any) -> None:
    monkeypatch.setattr(portfolio, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="skfolio"):
        portfolio.daily_returns()


def test_displacement_is_over_windows_one_behind_the_other() -> None:
    line = torch.arange(7.0)[:, None] * torch.tensor([3.0, 4.0])
    assert mean_squared_displacement(line, 2).value == pytest.approx(100.0)


def test_a_walk_takes_the_steps_of_its_batches() -> None:
    job = partly_trained(seed=0, examples=32, steps=2, lr=0.5)
    places = walk(job, 3, "shuffled")
    assert len(places) == 4
    assert bool((places[1:] != places[:-1]).any(1).all())
    assert torch.equal(places[0], walk(job, 1, "replacement")[0])
