"""The answer as text, in 80 columns."""

from dataclasses import replace

from cases import made_up, raced
from rightbatch.core.findings import Finding
from rightbatch.plan.decide import decide
from rightbatch.report.answer import answer, job_lines, table


def test_the_table_never_exceeds_eighty_columns() -> None:
    for t0, t1, critical in ((1e-6, 1e-7, 1e5), (50.0, 3.0, 9.0), (2e-3, 5e-4, 64)):
        found = made_up(t0=t0, t1=t1, critical=critical, jitter=0.3)
        text = table(decide(found).choice)
        assert max(len(line) for line in text.splitlines()) <= 80


def test_the_answer_holds_everything_that_was_decided() -> None:
    found = raced(made_up(), {64: (1, 1, 1), 16: (1.2, 1.1, 1.3)})
    finding = Finding(code="RB109", severity="warning", what="BatchNorm " * 12)
    decision = decide(replace(found, findings=(finding,)))
    text = answer(decision.choice, decision.plan)
    assert max(len(line) for line in text.splitlines()) <= 80
    words, plan = " ".join(text.split()), decision.plan
    alternatives = [f"{a.condition}: {a.consequence}" for a in plan.alternatives]
    reasons = [r.text for r in plan.why]
    for part in (plan.verdict, "RB109", *reasons, *alternatives, *plan.limits):
        assert " ".join(part.split()) in words
    assert words.count("3 rounds of") == 2  # as measured, and as a reason


def test_a_job_is_called_by_its_name_where_it_has_one() -> None:
    found = made_up()
    named, default = (
        replace(found, job=replace(found.job, name=name, spec="train.py:job"))
        for name in ("gpt-14m", "job")
    )
    assert job_lines(named).startswith(" now    gpt-14m: B = 64")
    assert job_lines(default).startswith(" now    B = 64")
    assert job_lines(found).startswith(" now    B = 64")  # as it was asked for
