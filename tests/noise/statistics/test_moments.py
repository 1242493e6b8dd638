"""Signal, noise and their ratio against their definitions."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from cases import regression_job
from reference import (
    pairwise_moments,
    per_example_gradients,
    true_noise,
)
from rightbatch.noise.statistics.moments import (
    NoiseMoments,
    finite_population,
    jackknife_moments,
    ratio,
    unbiased,
)


def of_rows(rows: np.ndarray, size: int) -> NoiseMoments:
    gram = rows @ rows.T
    return jackknife_moments(np.diag(gram), gram.sum(1), size)


@given(st.integers(3, 8), st.integers(1, 9), st.integers(0, 1000))
def test_moments_equal_their_definition(groups: int, size: int, seed: int) -> None:
    rows = np.random.default_rng(seed).normal(size=(groups, 4)) + 1.0
    found = of_rows(rows, size)
    got = found.grad_norm_sq, found.trace
    np.testing.assert_allclose(got, pairwise_moments(rows, size), rtol=1e-9, atol=1e-12)


def test_moments_are_unbiased() -> None:
    # 20,000 draws of 6 groups of 5 in 3 dimensions. Known truth: |G|^2 = 0.3,
    # tr Sigma = 6. Tolerance: 4 standard errors of the mean over draws.
    random = np.random.default_rng(0)
    mean = np.array([0.5, 0.2, 0.1])
    rows = mean + random.normal(size=(20_000, 6, 5, 3)) * np.sqrt(2.0)
    grads = rows.mean(axis=2)
    parts = (grads / 6) ** 2
    totals = grads.mean(axis=1) ** 2
    found = np.stack(unbiased(parts.sum((1, 2)), totals.sum(1), 1 / 6, 30), axis=1)
    for column, truth in ((0, float(mean @ mean)), (1, 6.0)):
        error = found[:, column].std() / math.sqrt(len(found))
        assert abs(found[:, column].mean() - truth) < 4 * error


@pytest.mark.slow
def test_intervals_cover_the_truth() -> None:
    # 1,500 draws of 32 groups, 20 dimensions, noise scale 40 at groups of 16: the
    # Fieller interval holds the truth in 95 %; accepted 92 to 98 (4 s.e. is 2.2 %).
    random = np.random.default_rng(1)
    mean = np.full(20, math.sqrt(1 / 20))
    truth, held = 40.0, 0
    scale = math.sqrt(truth / 20 / 16)
    for _ in range(1500):
        g = mean + random.normal(size=(32, 20)) * scale
        e = ratio(of_rows(g, 16), samples=32, n=512, method="")
        held += e.low <= truth <= e.high
    assert 0.92 <= held / 1500 <= 0.98


def test_no_signal_has_no_upper_bound() -> None:
    random = np.random.default_rng(2)
    g = random.normal(size=(16, 50))
    g -= g.mean(0)  # no mean at all: the signal's estimate is negative
    e = ratio(of_rows(g, 4), samples=16, n=64, method="")
    assert e.value == math.inf
    assert e.high == math.inf
    assert e.low > 0


def test_too_few_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="3 groups"):
        of_rows(np.eye(2), 1)


def test_without_replacement_the_population_is_the_data_set() -> None:
    # All 10 examples, all batches of 6 in 3 groups, exactly: the mean over every
    # order equals the population's own |G|^2 and tr Sigma.
    job = regression_job(examples=10)
    model = nn.Linear(5, 1, bias=False)
    rows = per_example_gradients(job, model).numpy()
    truth = true_noise(job, model)
    found = []
    for seed in range(20_000):
        pick = np.random.default_rng(seed).permutation(10)[:6]
        parts = rows[pick].reshape(3, 2, -1).sum(1) / 6
        whole = parts.sum(0)
        both = unbiased(np.array((parts**2).sum()), np.array(whole @ whole), 1 / 3, 6)
        found.append([float(v) for v in finite_population(*both, 10)])
    error = np.std(found, axis=0) / math.sqrt(len(found))
    assert (abs(np.mean(found, axis=0) - truth) < 4 * error).all()


def test_the_raw_norm_as_signal_never_exceeds_the_batch() -> None:
    # With the noise scale far above the batch the biased form says about B,
    # whatever the truth; a rule that sets B from it grows for ever (pitfall 14).
    random = np.random.default_rng(0)
    dimension, truth = 200, 1000.0
    mean = np.full(dimension, 1 / math.sqrt(dimension))

    def step(batch: int) -> tuple[float, float, float]:
        size = batch // 8
        scale = math.sqrt(truth / dimension / size)
        parts = (mean + random.normal(size=(8, dimension)) * scale) / 8
        whole = parts.sum(0)
        both = unbiased(
            np.array((parts**2).sum()), np.array(whole @ whole), 1 / 8, 8 * size
        )
        return float(both[0]), float(both[1]), float(whole @ whole)

    for batch in (16, 64):
        rows = np.array([step(batch) for _ in range(2000)]).mean(0)
        assert rows[1] / rows[2] < 1.1 * batch
        assert rows[1] / rows[0] == pytest.approx(truth, rel=0.35)
    biased = right = 16
    for _ in range(6):  # B <- 4 noise / signal, as norm tests do with eta = 1/2
        rows = np.array([step(8 * max(1, biased // 8)) for _ in range(200)]).mean(0)
        biased = int(4 * rows[1] / rows[2])
        rows = np.array([step(8 * max(1, right // 8)) for _ in range(4000)]).mean(0)
        right = int(min(max(4 * rows[1] / rows[0], 8), 1e5))
    assert right == pytest.approx(4 * truth, rel=0.3)
    assert biased != pytest.approx(right, rel=0.05)
