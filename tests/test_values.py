"""Estimates, units and records."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rightbatch as rb
from cases import made_up, raced
from rightbatch.core.estimate import Estimate
from rightbatch.core.json_io import from_plain, to_plain, write_json
from rightbatch.core.units import parse_bytes, parse_seconds, show_seconds
from rightbatch.measure.record import Measurements
from rightbatch.plan.decide import decide

finite = st.floats(-1e12, 1e12)


@given(finite, finite, finite, finite)
def test_scaling_keeps_the_value_inside(a: float, b: float, c: float, f: float) -> None:
    low, value, high = sorted((a, b, c))
    scaled = Estimate(value=value, low=low, high=high).scale(f)
    assert scaled.low <= scaled.value <= scaled.high


def test_a_value_outside_its_interval_is_refused() -> None:
    with pytest.raises(ValueError, match="does not hold"):
        Estimate(value=3.0, low=1.0, high=2.0)


def test_median_interval_covers() -> None:
    # 2,000 samples of 15 log-normal draws: the median 1 is held in 95 % of them. The
    # order statistics give at least the nominal rate up to rounding of the rank.
    random = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        e = Estimate.median(list(np.exp(random.normal(size=15))), "")
        held += e.low <= 1 <= e.high
    assert 0.93 <= held / 2000 <= 0.995


def test_draws_with_infinities_are_unbounded() -> None:
    e = Estimate.from_draws(1.0, [0.5] * 50 + [math.inf] * 50, unit="", n=2, method="")
    assert (e.low, e.high, e.bounded) == (0.5, math.inf, False)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("30s", 30), ("1.5min", 90), ("2h", 7200)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "-3s", "2 parsecs", "1.2.3", "nan", "h"])
def test_bad_durations(text: str) -> None:
    with pytest.raises(rb.SettingError):
        parse_seconds(text)


def test_sizes() -> None:
    assert parse_bytes("16GiB") == 16 * 2**30
    assert parse_bytes("500 MB") == 5e8


@given(st.floats(1e-9, 1e9))
def test_shown_seconds_are_short(seconds: float) -> None:
    assert len(show_seconds(seconds)) <= 12


def test_measurements_round_trip(tmp_path: Path) -> None:
    found = raced(made_up(jitter=0.02), {64: (1, 1, 1), 32: (1.2, 1.1, 1.3)})
    found.save(tmp_path / "m.json")
    assert Measurements.load(tmp_path / "m.json") == found


def test_infinite_intervals_survive_strict_json(tmp_path: Path) -> None:
    found = made_up(spread=2.0)  # a signal not told from zero: no upper bound
    assert not found.noise[0].noise_scale.bounded
    found.save(tmp_path / "m.json")
    json.loads((tmp_path / "m.json").read_text(), parse_constant=pytest.fail)
    assert Measurements.load(tmp_path / "m.json") == found


def test_plan_round_trip(tmp_path: Path) -> None:
    plan = decide(made_up()).plan
    plan.save(tmp_path / "p.json")
    assert rb.Plan.load(tmp_path / "p.json") == plan


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("[1]", "not a rightbatch/plan/2"),
        ('{"format": "rightbatch/plan/99"}', "not a rightbatch/plan/2"),
        ('{"format": "rightbatch/plan/2"}', "damaged"),
        ('{"format": "rightbatch/plan/2", "batchsize": 3}', "damaged"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "p.json"
    path.write_text(text)
    with pytest.raises(rb.RunFolderError, match=message):
        rb.Plan.load(path)


def test_a_wrong_type_in_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    plain = to_plain(decide(made_up()).plan)
    plain["batch_size"] = "many"
    path.write_text(json.dumps({"format": "rightbatch/plan/2", **plain}))
    with pytest.raises(rb.RunFolderError, match="'many'"):
        rb.Plan.load(path)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "e.json"
    write_json(path, Estimate.exact(1.0), "test/1")
    before = path.read_text()
    with pytest.raises(TypeError):
        write_json(path, {"x": object()}, "test/1")  # type: ignore[arg-type]
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]


@given(finite, st.integers(0, 10**12))
def test_records_round_trip(value: float, n: int) -> None:
    e = Estimate(value=value, low=-math.inf, high=math.inf, n=n)
    assert from_plain(Estimate, json.loads(json.dumps(to_plain(e)))) == e
