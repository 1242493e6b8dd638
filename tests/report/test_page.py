"""The page: any name and any interval."""

from dataclasses import replace

from cases import made_up, raced
from rightbatch.plan.decide import decide
from rightbatch.report.page import Page


def test_the_page_survives_odd_names_and_open_intervals() -> None:
    found = raced(made_up(spread=2.0), {64: (1, 1, 1), 32: (1.2, 1.1, 1.3)})
    odd = "</script><b>&x"
    found = replace(found, job=replace(found.job, name=odd, spec=odd))
    decision = decide(found)
    text = Page(decision.choice, decision.plan).html()
    assert "</script><b>" not in text
    assert "no upper bound" in text
