"""Values survive strict JSON; files that do not hold one are refused."""

import json
import math
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rightbatch as rb
from cases import Truth, made_up, raced
from rightbatch.core.estimate import Estimate
from rightbatch.core.json_io import from_plain, to_plain, write_json
from rightbatch.measure.measurements import Measurements
from rightbatch.plan.decide import decide

finite = st.floats(-1e12, 1e12)


def test_measurements_round_trip(tmp_path: Path) -> None:
    found = raced(made_up(jitter=0.02), Truth(), [(64, 0.1), (32, 0.05)])
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
        ("[1]", "not a rightbatch/plan/4"),
        ('{"format": "rightbatch/plan/99"}', "not a rightbatch/plan/4"),
        ('{"format": "rightbatch/plan/4"}', "damaged"),
        ('{"format": "rightbatch/plan/4", "batchsize": 3}', "damaged"),
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
    path.write_text(json.dumps({"format": "rightbatch/plan/4", **plain}))
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


@dataclass
class Row:
    """One line of a long file."""

    steps: int
    loss: float


def test_types_are_looked_up_once_for_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long trace is read row by row: 100,000 of them in two seconds."""
    looked_up: list[Any] = []
    hints = typing.get_type_hints
    monkeypatch.setattr(
        typing, "get_type_hints", lambda kind: looked_up.append(kind) or hints(kind)
    )
    rows = [from_plain(Row, {"steps": i, "loss": 0.5}) for i in range(1000)]
    assert rows[-1] == Row(999, 0.5)
    assert looked_up == [Row]


@pytest.mark.parametrize("number", [np.float32(0.5), np.float64(0.5), np.float16(0.5)])
def test_numpys_numbers_become_pythons(number: Any) -> None:
    plain = to_plain({"share": number, "count": np.int64(3), "yes": True})
    assert json.dumps(plain) == '{"share": 0.5, "count": 3, "yes": true}'
    assert to_plain(np.float32("inf")) == "inf"
