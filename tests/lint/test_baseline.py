"""A baseline knows a finding again, whatever its numbers are by now."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rightbatch.core.errors import RunFolderError
from rightbatch.core.findings import Finding
from rightbatch.lint.baseline import Baseline, fingerprint


def finding(what: str, code: str = "RB206", **other: Any) -> Finding:
    given: dict[str, Any] = {"severity": "warning", **other}
    return Finding(code=code, what=what, **given)


def test_a_finding_is_known_again(tmp_path: Path) -> None:
    Baseline.of([finding("31% of all tokens are padding")]).save(tmp_path / "b.json")
    baseline = Baseline.load(tmp_path / "b.json")
    again = finding("9.5% of all tokens are padding", seen="other numbers")
    other = finding("31% of all tokens are padding", code="RB205")
    another = finding("31% of all frames are padding")
    worse = finding("31% of all tokens are padding", severity="error")
    assert baseline.new([again, other, another, worse]) == (other, another, worse)
    assert Baseline.of([]).new([again]) == (again,)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=2))
def test_no_measured_number_counts(values: list[float]) -> None:
    prints = {fingerprint(finding(f"a {abs(value):,.4e} x b")) for value in values}
    prints |= {fingerprint(finding(f"a {number} x b")) for number in ("0.5", "1,234")}
    assert len(prints) == 1


@pytest.mark.parametrize(
    "name", ["layers.{}.norm (LayerNorm)", "norm{}", "0.{} (Linear)", "{} ranks"]
)
def test_a_number_in_a_name_counts(name: str) -> None:
    one, two = (fingerprint(finding(name.format(n))) for n in (1, 2))
    assert one != two


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"format": "rightbatch/plan/1"}',
        '{"format": "rightbatch/baseline/1"}',
        '{"format": "rightbatch/baseline/1", "findings": [{"code": "RB1"}]}',
    ],
)
def test_a_damaged_file_is_one_clear_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text(text)
    with pytest.raises(RunFolderError) as raised:
        Baseline.load(tmp_path / "b.json")
    assert "--write-baseline" in raised.value.fix
    with pytest.raises(RunFolderError, match="cannot read"):
        Baseline.load(tmp_path / "none.json")
