"""The chapter on what a step costs: its formulas against slow or closed forms."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rightbatch.cluster.network import ASSUMED
from rightbatch.lab.chapters import claim_named
from rightbatch.lab.claim import run_claim
from rightbatch.lab.cost import best_batch, norms_cost, powers_of_two
from rightbatch.lab.cost.accumulation import distance, gradient_of, mean_of_means
from rightbatch.lab.cost.cpu_time import cpu_seconds, ratio
from rightbatch.lab.cost.same_work import products_of_an_example
from rightbatch.lab.cost.streaming_memory import OnDisk, peak_of_reading
from rightbatch.lab.training_runs import digits_job, started


@pytest.mark.parametrize("name", ["streaming-memory"])  # no other is quick and untimed
def test_quick_claims_come_to_their_verdict(name: str) -> None:
    outcome = run_claim(claim_named(name), seed=3)
    assert outcome.as_recorded, str(outcome)


def test_products_are_counted_as_loops_would_make_them() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    operations = 0
    for layer, (inputs, outputs) in enumerate([(3, 4), (4, 2)]):
        for _ in range(inputs * outputs):
            operations += 2  # the output
            operations += 2  # the weight's gradient
            operations += 2 if layer > 0 else 0  # the input's gradient
    assert products_of_an_example(model) == operations


@pytest.mark.parametrize("batch", [4.0, 64.0, 1e12])
def test_steps_on_the_quadratic_follow_the_closed_form(batch: float) -> None:
    """After t steps the mean square is s^t + noise (1 - s^t) / (1 - s)."""

    def loss(rate: float, t: int) -> float:
        s = (1 - rate * best_batch.HESSIAN) ** 2
        noise = rate**2 * best_batch.HESSIAN / batch
        square = s**t + noise * (1 - s**t) / (1 - s)
        return 0.5 * float(square @ best_batch.HESSIAN)

    steps = math.floor(best_batch.steps_on_quadratic(batch))
    rates = best_batch.RATES[:, 0]
    assert min(loss(rate, steps) for rate in rates) > best_batch.GOAL
    assert min(loss(rate, steps + 1) for rate in rates) <= best_batch.GOAL


def test_a_mean_of_means_is_the_gradient_only_of_even_pieces() -> None:
    job = digits_job()
    x, y = (tensor[:40] for tensor in job.data)
    model = job.make_model()
    gradients = torch.autograd.grad(
        F.cross_entropy(model(x), y), list(model.parameters())
    )
    plain = torch.cat([g.double().flatten() for g in gradients])
    assert distance(gradient_of(job, 40, 40), plain) < 1e-5
    assert distance(gradient_of(job, 40, 16), plain) < 1e-5
    assert distance(mean_of_means(job, 40, 10), plain) < 1e-5
    assert distance(mean_of_means(job, 40, 16), plain) > 1e-2


def test_gain_is_nothing_on_a_line_and_seen_in_tiles() -> None:
    line = [3.0 + 0.01 * b for b in powers_of_two.SIZES]
    assert powers_of_two.gain_of(line) == pytest.approx(0.0, abs=1e-12)
    tiles = [math.ceil(b / 256) for b in powers_of_two.SIZES]  # only 257 is another
    assert powers_of_two.gain_of(tiles) == pytest.approx(math.log(1.5) / 4)


def test_energy_of_devices_is_that_of_one_and_of_waiting() -> None:
    joules = 4 * (0.01 + 0.005) / (4 * 8)  # of 4 devices of a watt and 8 examples
    assert norms_cost.energy(0.01, 0.005) == pytest.approx(joules / (0.01 / 8))
    model = nn.Sequential(nn.BatchNorm1d(16), nn.Linear(16, 16))
    tree = 2 * (8 * 16 / ASSUMED.bandwidth + 2 * ASSUMED.latency_s)  # 4 devices
    assert norms_cost.exchange_s(model) == pytest.approx(2 * tree)


def test_the_peak_of_a_file_read_first_holds_the_file(tmp_path: Path) -> None:
    rows = np.arange(512 * 1024, dtype=np.float32).reshape(512, 1024)
    np.save(tmp_path / "rows.npy", rows)
    path = tmp_path / "rows.npy"
    assert np.array_equal(OnDisk(path)[7], rows[7])
    streamed = peak_of_reading(OnDisk, path, 8, 0)
    first = peak_of_reading(lambda p: list(np.load(p)), path, 8, 0)
    assert first - streamed > 0.9 * rows.nbytes


def test_seconds_of_every_step_in_every_round() -> None:
    with started(digits_job()) as run:
        seconds = cpu_seconds([(run, 8, 8), (run, 8, 4)], rounds=2)
        assert [len(rounds) for rounds in seconds] == [2, 2]
        assert min(map(min, seconds)) > 0
        assert run.accumulator.micro_batch_size.most in (4, 8)


def test_a_ratio_is_the_median_of_rounds() -> None:
    assert ratio([2.0, 9.0, 4.0], [1.0, 1.0, 1.0], 2.0).value == 8.0
