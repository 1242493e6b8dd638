"""SARIF documents are valid by the official schema, and lead to the job's line.

The schema is the one that GitHub code scanning names, 2.1.0-rtm.5, as it lies in the
npm package @microsoft/jest-sarif 1.0.0-beta.0 (Microsoft Corporation, MIT licence).
"""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from rightbatch.core.findings import Finding
from rightbatch.job.loading import look_up
from rightbatch.lint.rules import ALL_RULES
from rightbatch.lint.sarif import Place, defined_at, sarif_document

SCHEMA = json.loads(
    (Path(__file__).parent / "sarif-2.1.0-rtm.5.json").read_text(encoding="utf-8")
)
FINDINGS = [
    Finding(code="RB104", severity="error", what="NaN", seen="4 examples", fix="log"),
    Finding(code="RB109", severity="warning", what="it normalises"),
    Finding(code="RB203", severity="note", what="3.1% of 10 examples"),
]


def problems(document: Any) -> list[str]:
    validator = jsonschema.Draft4Validator(
        SCHEMA, format_checker=jsonschema.FormatChecker()
    )
    return [error.message for error in validator.iter_errors(document)]


@pytest.fixture
def document() -> Any:
    made = sarif_document(FINDINGS, job="digits", place=defined_at(look_up("digits")))
    return json.loads(json.dumps(made))


def test_the_document_is_valid(document: Any) -> None:
    assert problems(document) == []
    assert problems(sarif_document([], job="x", place=Place(path=Path("x")))) == []


def test_the_schema_would_see_a_fault(document: Any) -> None:
    document["runs"][0]["results"][0]["level"] = "fatal"
    assert any("fatal" in problem for problem in problems(document))


def test_results_point_at_their_rules(document: Any) -> None:
    run = document["runs"][0]
    rules = run["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == list(ALL_RULES)
    for result, finding in zip(run["results"], FINDINGS, strict=True):
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"] == finding.code
        assert result["level"] == finding.severity
        assert finding.what in result["message"]["text"]
    for rule in rules:
        assert rule["help"]["markdown"].startswith(f"# {rule['id']}: {rule['name']}")
        assert len(rule["fullDescription"]["text"]) <= 1024  # GitHub's limit


def test_a_finding_keeps_its_fingerprint(document: Any) -> None:
    changed = [Finding(code="RB203", severity="note", what="4.2% of 10 examples")]
    again = sarif_document(changed, job="digits", place=Place(path=Path("y.py")))
    prints = [
        d["runs"][0]["results"][-1]["partialFingerprints"] for d in (document, again)
    ]
    assert prints[0] == prints[1]


SOURCE = """import torch
from elsewhere import made as imported

def other():
    job = 1

first, job = 1, 2
typed: int = 3

def function():
    pass

if True:
    inner = 4
"""


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("job", 7),
        ("imported", 2),
        ("typed", 8),
        ("function", 10),
        ("inner", 14),
        ("missing", 1),
    ],
)
def test_the_line_that_defines_a_job(
    name: str, line: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "a job.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    place = defined_at(look_up(f"below/a job.py:{name}"))
    assert place.line == line
    assert place.location["physicalLocation"]["artifactLocation"] == {
        "uri": "below/a%20job.py",
        "uriBaseId": "%SRCROOT%",
    }
    monkeypatch.chdir(tmp_path / "below")  # outside of the folder: absolute
    outside = Place(path=tmp_path / "x.py").location["physicalLocation"]
    assert outside["artifactLocation"] == {"uri": (tmp_path / "x.py").as_uri()}


def test_the_lines_of_modules_and_built_in_jobs() -> None:
    place = defined_at(look_up("rightbatch.job.built_in.digits:make_job"))
    assert place == defined_at(look_up("digits"))
    text = place.path.read_text(encoding="utf-8").splitlines()[place.line - 1]
    assert text.startswith("def make_job(")
