"""Samples kept in little memory, numerators and denominators apart."""

import json

import numpy as np
import pytest

from rightbatch.noise.statistics.history import BLOCKS, History
from rightbatch.noise.statistics.reading import noise_scale_of


def test_numerator_and_denominator_are_averaged_apart() -> None:
    # Signals of -1 and 3: the mean is 1, and no value is cut off or left out.
    history = History()
    for k in range(100):
        history.add(k, 1.0, np.array([-1.0 if k % 2 else 3.0]), np.array([8.0]))
    blocks = history.since(0)
    assert sum(b.signal[0] for b in blocks) / 100 == 1.0
    noise = noise_scale_of(blocks, ["weight"], "").noise_scale
    assert noise.value == pytest.approx(8.0)


def test_the_history_stays_small_and_loses_nothing() -> None:
    history, whole = History(), 0.0
    for k in range(5000):
        history.add(k, 2.0, np.array([float(k)]), np.array([1.0]))
        whole += 2.0 * k
        assert len(history.blocks) <= BLOCKS
    assert sum(b.count for b in history.blocks) == 5000
    assert sum(b.signal[0] for b in history.blocks) == whole
    again = History.from_state(json.loads(json.dumps(history.state())))
    assert again.blocks[3] == history.blocks[3]


def test_a_window_of_a_long_run_is_no_wider_than_asked_for() -> None:
    # Noise grows from 0 to 100 along 20,000 steps: 87.5 over their last quarter.
    history, steps = History(), 20_000
    for k in range(steps):
        history.add(k, 1.0, np.ones(1), np.full(1, 100 * k / steps))
    blocks = history.since(0.75 * steps)
    assert len(blocks) >= BLOCKS / 8
    found = noise_scale_of(blocks, ["weight"], "")
    assert found.window == pytest.approx(steps / 4, rel=0.02)
    assert found.noise_scale.value == pytest.approx(87.5, rel=0.01)
