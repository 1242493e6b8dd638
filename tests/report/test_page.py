"""The page: any name, any interval, any race."""

import json
import re
from dataclasses import replace
from typing import Any

import pytest
import vl_convert

from cases import Truth, made_up, raced
from rightbatch.measure.measurements import Measurements
from rightbatch.plan.decide import decide
from rightbatch.report.frame import framed
from rightbatch.report.page import MOST_BYTES, Page

SETTINGS = [(64, 0.1), (64, 0.2), (32, 0.1), (32, 0.1), (16, 1.6)]
TRUTH = Truth(lr_max=0.4, edge=2.5)


def page_of(found: Measurements) -> str:
    decision = decide(found)
    return Page(decision.choice, decision.plan).html()


def held(text: str, name: str) -> Any:
    """What a JSON element of the page holds."""
    element = re.search(rf'id="{name}">(.*?)</script>', text, re.DOTALL)
    assert element is not None
    return json.loads(element[1], parse_constant=pytest.fail)


def test_the_page_survives_odd_names_and_open_intervals() -> None:
    odd = "</script><b>&x"
    found = raced(made_up(spread=2.0), TRUTH, SETTINGS)
    found = replace(found, job=replace(found.job, name=odd, spec=odd))
    assert "</script><b>" not in page_of(found)


def test_the_grade_stands_beside_the_verdict() -> None:
    batches, factors = (4, 8, 16, 32, 64), (0.4, 1, 2)
    near = [(b, TRUTH.best_lr(b) * off) for b in batches for off in factors]
    decided = page_of(raced(made_up(), TRUTH, [*SETTINGS, *near, *near]))
    assert re.search(r'"grade sure">\s+Decided <i>raced to the target</i>', decided)
    laws = page_of(made_up())
    assert re.search(r'"grade unsure">\s+Not decided <i>laws only</i>', laws)


@pytest.mark.parametrize("kind", ["laws only", "no noise", "raced", "short", "nowhere"])
def test_every_chart_has_a_place_and_can_be_drawn(kind: str) -> None:
    found = {
        "laws only": made_up(),
        "no noise": replace(raced(made_up(), TRUTH, SETTINGS), noise=()),
        "raced": raced(made_up(optimizer="AdamW"), TRUTH, SETTINGS),
        "short": raced(made_up(), TRUTH, SETTINGS, seconds=0.6, target=False),
        "nowhere": raced(made_up(), Truth(edge=1e-3), SETTINGS, goal="max"),
    }[kind]
    text = page_of(found)
    charts = held(text, "charts")
    wanted = {"time", "step", "noise", "progress", "tradeoff", "curves", "map"}
    missing = {
        "laws only": {"curves", "map"},
        "no noise": {"noise"},
        "nowhere": {"map"},
    }.get(kind, set())
    assert set(charts) == wanted - missing
    assert set(re.findall(r'class="chart" id="(\w+)"', text)) == set(charts)
    for chart in charts.values():
        svg = vl_convert.vegalite_to_svg(json.dumps({**chart, "width": 300}))
        assert "NaN" not in svg


def test_a_long_race_makes_no_large_page() -> None:
    found = raced(made_up(), TRUTH, SETTINGS)
    race = found.race
    assert race is not None
    lanes = tuple(replace(race.lanes[i % 5], seed=i) for i in range(1500))
    text = page_of(replace(found, race=replace(race, lanes=lanes)))
    assert len(text.encode()) < MOST_BYTES
    assert "of the race only how each run ended" in text
    kept = held(text, "data")["measurements"]["race"]["lanes"]
    assert len(kept) == 1500
    assert all(len(lane["steps"]) == 1 for lane in kept)
    assert held(page_of(found), "data")["measurements"]["race"]["lanes"][0]["steps"][1:]


def test_a_frame_holds_any_body_and_its_charts() -> None:
    odd = "</script><b>&x"
    specs = {"loss": {"title": odd, "data": {"values": []}}}
    text = framed(odd, "<h2>a body</h2>", specs)
    assert "<h2>a body</h2>" in text
    assert odd not in text
    assert held(text, "charts") == specs
    assert "http" not in text.split('<script type="module">')[0]
