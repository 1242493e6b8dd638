"""The answer as text, in 80 columns."""

import re
from dataclasses import replace

import pytest

from cases import Truth, made_up, raced
from rightbatch.core.findings import Finding
from rightbatch.measure.measurements import Measurements
from rightbatch.plan.decide import decide
from rightbatch.plan.objectives import Examples, Objective
from rightbatch.report.answer import answer, job_lines, table, table_options

TODAY = (64, 0.1)
SETTINGS = [TODAY, TODAY, (64, 0.2), (32, 0.1), (32, 0.1), (32, 0.2), (16, 0.4)]
SETTINGS += [(128, 0.2), (128, 0.4), (256, 0.4), (128, 1.6)]
EDGE = Truth(lr_max=0.4, edge=2.5)


def text_of(found: Measurements, objective: Objective | None = None) -> str:
    decision = decide(found, objective)
    text = answer(decision.choice, decision.plan)
    assert max(len(line) for line in text.splitlines()) <= 80
    return text


def rows_of(text: str) -> dict[tuple[int, float], str]:
    """The rows of the race's table, by setting."""
    race = text.split(" Race ")[1].split(" > chosen")[0]
    found = re.finditer(r"^[ >*]{2} *(\d+) +([\d.e-]+) +\d+/\d+ +(.*)", race, re.M)
    return {(int(m[1]), float(m[2])): m[0] for m in found}


@pytest.mark.parametrize(
    ("t0", "t1", "critical"), [(1e-6, 1e-7, 1e5), (50.0, 3.0, 9.0), (2e-3, 5e-4, 64)]
)
def test_the_table_never_exceeds_eighty_columns(
    t0: float, t1: float, critical: float
) -> None:
    text = table(decide(made_up(t0=t0, t1=t1, critical=critical, jitter=0.3)).choice)
    assert max(len(line) for line in text.splitlines()) <= 80


def test_the_answer_holds_everything_that_was_decided() -> None:
    found = raced(made_up(), EDGE, SETTINGS, scatter=0.05)
    finding = Finding(code="RB109", severity="warning", what="BatchNorm " * 12)
    found = replace(found, findings=(finding,))
    words, plan = " ".join(text_of(found).split()), decide(found).plan
    alternatives = [f"{a.condition}: {a.consequence}" for a in plan.alternatives]
    reasons = [r.text for r in plan.why]
    for part in (plan.verdict, "RB109", *reasons, *alternatives, *plan.limits):
        assert words.count(" ".join(part.split())) == 1


def test_a_batch_has_a_row_for_each_rate_that_is_another() -> None:
    found = raced(made_up(), Truth(lr_max=0.8), SETTINGS)
    choice = decide(found).choice
    options = table_options(choice)
    at_today = [o.lr for o in options if o.batch_size == 64]
    assert at_today[0] == 0.1
    assert at_today[1] == pytest.approx(0.4, rel=0.2)  # best by the law
    assert len(at_today) == 2
    assert [o for o in options if o.batch_size == 32] == [choice.chosen]
    text = table(choice)
    assert text.count("\n *    64    64x1") == 1
    assert text.count("\n>     32    32x1") == 1
    # What was measured of a batch is said once.
    second = next(x for x in text.splitlines() if x.startswith("      64"))
    assert not second[16:40].strip()


def test_the_table_of_the_race_has_the_best_first_and_who_fell_out() -> None:
    text = text_of(raced(made_up(), EDGE, SETTINGS, scatter=0.05))
    assert "By evaluate from 3 to 1: 11 runs of 9 settings" in text
    rows = list(rows_of(text).items())
    assert rows[0][0] == (32, 0.1)
    assert rows[0][1].startswith(">     32      0.1     2/2")
    today = rows_of(text)[TODAY]
    assert today.startswith(" *    64      0.1     2/2")
    assert today.endswith("   1")
    seconds = [float(row.split("/")[1].split()[1]) for _, row in rows]
    assert seconds == sorted(seconds)
    assert "time, today = 1" in text
    assert "2 diverged (the lowest at lr 0.4, B = 16)" in text


def test_today_has_a_row_however_many_are_better() -> None:
    better = [(b, lr) for b in (32, 64, 128) for lr in (0.2, 0.4, 0.8)]
    text = text_of(raced(made_up(), Truth(lr_max=0.8), [(64, 0.1), *better]))
    assert len(rows_of(text)) == 7
    assert list(rows_of(text))[-1] == TODAY
    assert re.search(r"and \d slower", text)


def test_what_was_left_behind_is_no_ratio() -> None:
    found = raced(made_up(), EDGE, SETTINGS, seconds=0.6)
    assert found.race is not None
    text = text_of(found)
    assert "time, the best = 1" in text  # today's never got there
    best = min(found.race.lanes[0].metrics)
    end = rf"0/2 +> \d+ ms   left behind at {best:.3g}$"
    assert re.search(end, rows_of(text)[TODAY])


def test_today_that_diverged_is_told() -> None:
    settings = [TODAY, (64, 0.025), (64, 0.025), (128, 0.05)]
    text = text_of(raced(made_up(), Truth(lr_max=0.1, edge=1.2), settings))
    assert rows_of(text)[TODAY].endswith("diverged")


def test_a_race_that_got_nowhere_is_told_in_a_sentence() -> None:
    text = text_of(raced(made_up(), Truth(edge=1e-3), SETTINGS))
    said = " ".join(text.split())
    assert "11 runs with lr 0.1 to 1.6, 11 diverged" in said
    assert "none got better than the start, 3" in said


def test_the_unit_is_what_is_to_be_least() -> None:
    found = raced(made_up(), EDGE, SETTINGS, scatter=0.05)
    assert "examples, today = 1" in text_of(found, Examples())


def test_a_job_is_called_by_its_name_where_it_has_one() -> None:
    found = made_up()
    named, default = (
        replace(found, job=replace(found.job, name=name, spec="train.py:job"))
        for name in ("gpt-14m", "job")
    )
    assert job_lines(named).startswith(" now    gpt-14m: B = 64")
    assert job_lines(default).startswith(" now    B = 64")
    assert job_lines(found).startswith(" now    B = 64")  # as it was asked for
