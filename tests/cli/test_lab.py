"""The command `lab`: lists, runs, keeps what is finished, and its exit status."""

import json
from pathlib import Path

import pytest

from rightbatch.cli.lab import lab
from rightbatch.core.errors import MissingExtraError, SettingError
from rightbatch.lab.chapters import CLAIMS, TEXTS
from rightbatch.lab.check import equals
from rightbatch.lab.claim import Claim, Seen, Trial


def run(*arguments: str) -> int:
    return lab.main(list(arguments), standalone_mode=False)


def made(name: str, seen: float) -> Claim:
    """A claim like the first one whose number is given."""
    first = next(iter(CLAIMS.values()))

    def experiment(trial: Trial) -> Seen:
        trial.tell("half way")
        return Seen((equals("x", 1.0, seen, margin=0.1, wrong={"double": 2.0}),), ())

    fields = {f: getattr(first, f) for f in first.__dataclass_fields__}
    return Claim(**fields | {"id": name, "verdict": "holds", "run": experiment})


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> dict[str, Claim]:
    """Three claims in place of all: one holds, one does not, one needs an extra."""
    from rightbatch.lab import chapters

    def lacking(trial: Trial) -> Seen:
        raise MissingExtraError("needs data", fix="pip install 'rightbatch[examples]'")

    claims = {
        "holds-here": made("holds-here", 1.0),
        "fails-here": made("fails-here", 3),
    }
    fields = {f: getattr(claims["holds-here"], f) for f in Claim.__dataclass_fields__}
    claims["lacks"] = Claim(**fields | {"id": "lacks", "run": lacking})
    monkeypatch.setattr(chapters, "CLAIMS", claims)
    return claims


def test_without_arguments_it_lists_all_claims_by_text(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run() == 0
    out = capfd.readouterr().out
    assert all(name in out for name in CLAIMS)
    assert all(text in out for text in TEXTS.values())
    assert run("--json") == 0
    assert [row["id"] for row in json.loads(capfd.readouterr().out)["claims"]] == list(
        CLAIMS
    )


def test_one_claim_leaves_ledger_and_gallery(
    three: dict[str, Claim], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert run("holds-here", "--out", str(out), "--seed", "7") == 0
    told = capfd.readouterr().out
    assert "1 of 1 as on record" in told
    document = json.loads((out / "lab.json").read_text("utf-8"))
    assert document["claims"][0]["verdict"] == "holds"
    assert document["claims"][0]["seed"] == 7
    assert (out / "lab.html").stat().st_size > 100_000


def test_another_verdict_is_status_3_and_a_missing_extra_is_told(
    three: dict[str, Claim], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run("--all", "--out", str(tmp_path / "run"), "--json") == 3
    rows = json.loads(capfd.readouterr().out)["claims"]
    assert [(row["id"], row["verdict"]) for row in rows] == [
        ("holds-here", "holds"),
        ("fails-here", "not reproduced"),
    ]
    assert run("--all", "--out", str(tmp_path / "other")) == 3
    told = capfd.readouterr().out
    assert "fails-here: not reproduced, not holds" in told
    assert "not run: lacks: pip install" in told
    with pytest.raises(MissingExtraError):
        run("lacks", "--out", str(tmp_path / "third"))


def test_what_is_finished_is_kept_when_interrupted(
    three: dict[str, Claim], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(trial: Trial) -> Seen:
        raise KeyboardInterrupt

    fields = {f: getattr(three["lacks"], f) for f in Claim.__dataclass_fields__}
    monkeypatch.setitem(three, "lacks", Claim(**fields | {"run": interrupted}))
    assert run("--all", "--out", str(tmp_path / "run")) == 130
    document = json.loads((tmp_path / "run" / "lab.json").read_text("utf-8"))
    assert len(document["claims"]) == 2


def test_unknown_claims_and_both_ways_at_once_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="variance-over-b"):
        run("variance-over-n", "--out", str(tmp_path / "run"))
    with pytest.raises(SettingError, match="--all and claims by name"):
        run("--all", "variance-over-b")
    assert not (tmp_path / "run").exists()
