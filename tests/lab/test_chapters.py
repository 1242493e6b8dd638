"""Every claim has its words in both languages, its source, and a run on record."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from rightbatch.core.errors import SettingError
from rightbatch.lab.chapters import CHAPTERS, CLAIMS, TEXTS, by_text, claim_named
from rightbatch.lab.claim import Claim

DOCS = Path(__file__).parents[2] / "docs"
LEDGER = json.loads((DOCS / "lab.json").read_text(encoding="utf-8"))
RAN = {row["id"]: row for row in LEDGER["claims"]}
CHINESE = re.compile(r"[一-鿿]")
claims = pytest.mark.parametrize("claim", CLAIMS.values(), ids=lambda claim: claim.id)


@claims
def test_a_claim_is_told_in_both_languages(claim: Claim) -> None:
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", claim.id)
    for text in (claim.en.title, claim.en.claimed, claim.en.assumed, claim.en.seen):
        assert text
        assert not CHINESE.search(text)
    for text in (claim.zh.title, claim.zh.claimed, claim.zh.assumed, claim.zh.seen):
        assert CHINESE.search(text)
    wants_answer = claim.verdict in ("holds if", "fails as written")
    assert bool(claim.en.answer) == bool(claim.zh.answer) == wants_answer
    # The page puts "holds if" or "fails as written:" before it.
    assert not re.match(r"(holds|fails|成立|照原文)", claim.en.answer + claim.zh.answer)


@claims
def test_a_claim_names_sentences_of_the_texts(claim: Claim) -> None:
    assert claim.texts
    for text in claim.texts:
        assert int(text.split()[0]) in TEXTS
    assert claim.theory
    assert claim.power


@claims
def test_the_run_on_record_turned_every_planted_error_down(claim: Claim) -> None:
    row = RAN[claim.id]
    assert row["verdict"] == claim.verdict == row["recorded"]
    assert row["checks"]
    for check in row["checks"]:
        assert check["wrong"], check["what"]
        assert check["missed"] == [], check["what"]


def test_the_ledger_holds_all_claims_and_no_other() -> None:
    assert list(RAN) == list(CLAIMS)
    assert sum(row["seconds"] for row in RAN.values()) < 15 * 60


def test_no_claim_stands_twice_and_every_text_has_some() -> None:
    listed = [claim.id for chapter in CHAPTERS for claim in chapter.claims]
    assert len(listed) == len(CLAIMS)
    assert all(by_text()[number] for number in TEXTS)


def test_an_unknown_claim_is_met_with_the_nearest() -> None:
    with pytest.raises(SettingError, match="variance-over-b"):
        claim_named("variance-over-n")
    with pytest.raises(SettingError, match="rightbatch lab lists"):
        claim_named("???")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_pages_are_those_of_the_ledger(language: str) -> None:
    path = DOCS / "claim_pages.py"
    spec = importlib.util.spec_from_file_location("claim_pages", path)
    assert spec is not None
    assert spec.loader is not None
    pages = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pages)
    kept = pages.PAGES[language].read_text(encoding="utf-8")
    assert pages.page(language, LEDGER) == kept, "run: python docs/claim_pages.py"
