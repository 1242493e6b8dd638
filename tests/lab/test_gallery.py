"""The gallery shows what was run, in both languages, and fetches nothing."""

import re
from pathlib import Path

from rightbatch.core.estimate import Estimate
from rightbatch.lab.chapters import claim_named
from rightbatch.lab.check import equals
from rightbatch.lab.claim import Chart, Outcome
from rightbatch.lab.gallery import gallery, notebook_html, save_gallery
from rightbatch.lab.plots import Series, bars, plot

SPEC = plot(
    [
        Series("seen", [1, 2], [Estimate(value=1, low=0.5, high=2), 3.0], "points"),
        Series("theory", [1, 2], [1, 3], "dashed"),
    ],
    "x",
    "y",
    log="xy",
)


def outcome(measured: float = 1.0) -> Outcome:
    check = equals("<ratio>", 1.0, measured, margin=0.1, wrong={"half": 0.5})
    return Outcome(
        claim=claim_named("variance-over-b"),
        checks=(check,),
        charts=(
            Chart("what is seen", "所见", SPEC),
            Chart("b", "乙", bars({"a": 1.0}, "y")),
        ),
        seed=3,
        full=False,
        seconds=1.5,
    )


def test_words_numbers_and_planted_errors_stand_on_the_page() -> None:
    page = gallery([outcome()])
    for part in ("Doubling the batch", "&lt;ratio&gt;", "half: 0.5", "--seed 3"):
        assert part in page
    assert 'id="variance-over-b-0"' in page
    assert 'id="variance-over-b-1"' in page
    assert not re.search(r"(src|href)=[\"']https?:", page)


def test_another_verdict_than_on_record_is_said() -> None:
    page = gallery([outcome(2.0)])
    assert "not reproduced here" in page
    assert "on record: holds" in page
    assert not outcome(2.0).as_recorded


def test_a_check_that_lets_an_error_through_is_not_as_recorded() -> None:
    blind = equals("r", 1.0, 1.0, margin=0.6, wrong={"half": 0.5})
    ran = outcome()
    assert ran.as_recorded
    other = Outcome(
        claim=ran.claim, checks=(blind,), charts=(), seed=0, full=False, seconds=1.0
    )
    assert other.verdict == "holds"
    assert not other.as_recorded


def test_the_page_speaks_chinese(tmp_path: Path) -> None:
    text = save_gallery([outcome()], tmp_path / "lab.html", "zh").read_text("utf-8")
    assert "批量加倍" in text
    assert "Doubling the batch" not in text


def test_a_notebook_shows_the_picture() -> None:
    html = notebook_html(outcome())
    assert html.count("<svg") == 2
    assert "half: 0.5" in html
    bundle = outcome()._repr_mimebundle_()
    assert "holds" in bundle["text/plain"]
