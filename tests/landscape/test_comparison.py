"""What runs show: paired differences, verdicts and sentences, the table, the page."""

import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rightbatch.landscape.comparison import ComparedRun, Comparison, fluctuation_of
from rightbatch.landscape.comparison_page import comparison_charts, comparison_page
from rightbatch.landscape.comparison_text import judged, sentences, table


def runs_of(budget: Any, batch_size: int, rule: str, held: list[float]) -> list[Any]:
    """Runs of one setting: a number held out for each seed, none where it diverged."""
    return [
        ComparedRun(
            budget=budget,
            batch_size=batch_size,
            rule=rule,
            lr=0.1,
            seed=seed,
            updates=1600 // batch_size,
            train_loss=0.01,
            held_out=value,
            fluctuation=0.5 / math.sqrt(batch_size),
            end="diverged" if math.isnan(value) else "done",
            course=((1, 2.0, 2.1), (1600 // batch_size, 0.01, value)),
            sharpness=3.0 if budget == "loss" else None,
            trace=9.0 if budget == "loss" else None,
        )
        for seed, value in enumerate(held)
    ]


SMALL = [0.10, 0.20, 0.40]


def made(matched: dict[str, list[float]], **more: Any) -> Comparison:
    """B = 64 against 16, whose seeds differ far more than the batches do."""
    runs = runs_of("epochs", 16, "none", SMALL)
    runs += runs_of("epochs", 64, "none", [x + 0.5 for x in SMALL])
    runs += runs_of("loss", 16, "none", SMALL)
    for rule, held in matched.items():
        runs += runs_of("loss", 64, rule, held)
    given: dict[str, Any] = {
        "job": "made <up>",
        "goal": "min",
        "epochs": 2.0,
        "seeds": 3,
        "start_train_loss": 2.3,
        "start_held_out": 2.3,
        "same_quantity": True,
        "level": 0.01,
        "runs": tuple(runs),
    }
    return Comparison(**{**given, **more})


def off(*by: float) -> list[float]:
    """The small batch's numbers, each so much higher."""
    return [a + b for a, b in zip(SMALL, by, strict=True)]


def test_differences_are_paired_by_seed_with_students_interval() -> None:
    found = made({"linear": off(0.01, 0.02, 0.03)})
    difference = found.difference(("loss", 64, "linear"))
    assert difference is not None
    half = 4.3027 * 0.01 / math.sqrt(3)  # t of 2 degrees of freedom
    assert difference.value == pytest.approx(0.02)
    assert difference.high - difference.value == pytest.approx(half, rel=1e-4)
    assert difference.n == 3
    one_less = made({"linear": [math.nan, *off(0.01, 0.02, 0.03)[1:]]})
    left = one_less.difference(("loss", 64, "linear"))
    assert left is not None
    assert (left.n, left.value) == (2, pytest.approx(0.025))
    assert found.difference(("loss", 16, "none")) is None
    mean = found.mean(("loss", 16, "none"), "gap")
    assert mean is not None
    assert mean.value == pytest.approx(np.mean(SMALL) - 0.01)


@pytest.mark.parametrize(
    ("by", "verdict"),
    [
        ((0.10, 0.11, 0.12), "worse"),
        ((-0.10, -0.11, -0.12), "better"),
        ((0.001, -0.001, 0.002), "as good"),  # within 0.022, 1 % of what is gained
        ((0.10, -0.10, 0.05), "undecided"),
        ((math.nan, math.nan, 0.1), "undecided"),  # no interval of one seed
    ],
)
def test_the_interval_decides_the_verdict(by: Any, verdict: str) -> None:
    found = made({"none": off(*by)})
    assert judged(found, ("loss", 64, "none")) == verdict
    opposite = {"worse": "better", "better": "worse"}.get(verdict, verdict)
    scored = replace(found, goal="max")
    assert judged(scored, ("loss", 64, "none")) == opposite


BAD, FINE, OPEN = off(0.10, 0.11, 0.12), off(0.0, 0.001, 0.0), off(0.1, -0.1, 0.0)


@pytest.mark.parametrize(
    ("matched", "conclusion"),
    [
        (
            {"none": BAD, "sqrt": FINE},
            " generalises worse than 16 with the same rate, ",
        ),
        ({"none": BAD, "sqrt": OPEN}, " generalises worse than 16 with the same rate."),
        ({"none": FINE, "sqrt": OPEN}, "generalises no worse than 16 with the same ra"),
        ({"none": OPEN, "sqrt": OPEN}, "Undecided whether B = 64 generalises worse th"),
    ],
)
def test_the_sentences_say_what_the_runs_show(matched: Any, conclusion: str) -> None:
    verdict, differences, epochs = sentences(made(matched))
    assert conclusion in verdict
    by_rate = matched["none"] is BAD and matched["sqrt"] is FINE
    assert ("it is the rate, not the batch" in verdict) == by_rate
    assert "At training loss 0.01, held out B = 64 is off from B = 16 by" in differences
    assert epochs == (
        "At equal epochs B = 64 ends held out at 0.733 with the same rate; "
        "B = 16 at 0.233, after 4 x as many updates."
    )


def test_a_number_below_zero_keeps_its_sign() -> None:
    found = made({"none": FINE})
    runs = [replace(run, held_out=-run.held_out) for run in found.runs]
    (ends,) = sentences(replace(found, runs=tuple(runs)))[2:]
    assert "held out at -0.733 with the same rate; B = 16 at -0.233, after" in ends


def test_one_difference_for_all_seeds_has_no_interval() -> None:
    """Such as one example of a small set, three times: it tells no scatter."""
    found = made({"none": off(0.02, 0.02, 0.02)})
    difference = found.difference(("loss", 64, "none"))
    assert difference is not None
    assert not difference.bounded
    assert judged(found, ("loss", 64, "none")) == "undecided"


def test_without_a_pair_more_seeds_are_no_advice() -> None:
    found = made({"none": [math.nan] * 3, "sqrt": [math.nan] * 3})
    verdict, *_ = sentences(found)
    assert verdict == (
        "At matched training loss B = 64 and 16 cannot be compared: no seed has both "
        "at 0.01."
    )
    some = made({"none": BAD, "sqrt": [math.nan] * 3})
    assert "3 diverged with the sqrt rate" in sentences(some)[1]
    more = runs_of("loss", 16, "sqrt", [math.nan] * 3)
    more += runs_of("loss", 64, "sqrt", SMALL)
    lone = replace(made({"none": BAD}), runs=(*made({"none": BAD}).runs, *more))
    assert "no pair with the sqrt rate" in sentences(lone)[1]


def test_the_jobs_own_batch_is_compared_by_every_rule() -> None:
    """It has one rate: its runs stand for each rule that the smaller batch has."""
    found = made({"none": BAD})
    more = runs_of("loss", 16, "linear", [x + 0.3 for x in SMALL])
    found = replace(found, runs=(*found.runs, *more))
    verdict, differences, _ = sentences(found)
    assert "worse than 16 with the same rate, not with the linear rate" in verdict
    assert "-0.19 (-0.215 to -0.165) with the linear rate" in differences


def test_the_table_fits_eighty_columns_and_says_what_diverged() -> None:
    found = made({"noise-aware": [math.nan, math.nan, 0.1]})
    lines = "\n".join(table(found)).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[-1].endswith("-0.3 n=1")
    assert "-0.3, 2 diverged with the noise-aware rate" in sentences(found)[1]


def test_fluctuation_is_that_of_a_least_squares_line() -> None:
    losses = np.random.default_rng(0).normal(size=400) + np.linspace(9, 1, 400)
    late, places = losses[-100:], np.arange(100)
    rest = late - np.polyval(np.polyfit(places, late, 1), places)
    assert fluctuation_of(list(losses)) == pytest.approx(rest.std(ddof=2))
    assert fluctuation_of([1.0] * 19) is None


def test_the_page_has_a_place_for_every_chart_and_escapes_names() -> None:
    found = made({"none": BAD, "sqrt": FINE})
    page = comparison_page(found)
    places = set(re.findall(r'class="chart" id="([^"]+)"', page))
    assert places == set(comparison_charts(found))
    assert {"difference", "sharpness", "fluctuation", "examples_held out"} <= places
    assert "made &lt;up&gt;" in page
    assert "not comparable" in page  # sharpness, where the loss is not matched
    assert sentences(found)[1] in page
    only = replace(found, runs=found.runs[:1], interrupted=True)
    assert "interrupted" in comparison_page(only)
