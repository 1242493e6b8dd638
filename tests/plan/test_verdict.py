"""The verdict: what is said agrees with what was chosen and with what was seen."""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest

import rightbatch as rb
from cases import Truth, made_up, raced, ran_to_target
from rightbatch.measure.measurements import Measurements
from rightbatch.plan.decide import Decision, decide
from rightbatch.plan.verdict import LEAST_TOLD

TRUTH = Truth(critical=100, least=500)
TRIED = [
    (b, TRUTH.best_lr(b) * off) for b in (8, 16, 32, 64) for off in (0.3, 0.8, 1.6)
]


def measured(today: int = 64) -> Measurements:
    """Noise was seen over a tenth of the data at the least."""
    found = made_up(t0=4e-3, t1=1e-3, critical=100, today=today)
    return replace(found, job=replace(found.job, examples=10_000))


FOUND = measured()


def far() -> Measurements:
    """Today's rate is a sixth of the best, and is raced."""
    truth = replace(TRUTH, lr_max=6 * 0.1 * (1 + 100 / 64), edge=8)
    batches, factors = (4, 8, 16, 32, 64, 128), (0.4, 0.9, 2)
    tried = [(b, truth.best_lr(b) * off) for b in batches for off in factors]
    return raced(FOUND, truth, [(64, 0.1), *tried, *tried])


def good() -> Measurements:
    """Today's is the best there is, and was raced three times."""
    truth = replace(TRUTH, lr_max=0.1 * (1 + 100 / 16))
    batches, factors = (4, 8, 16, 32, 64, 128), (0.3, 0.7, 1.6)
    others = [(b, truth.best_lr(b) * off) for b in batches for off in factors]
    return raced(measured(16), truth, [*[(16, 0.1)] * 3, *others])


def short(share: float = 0.08) -> Measurements:
    """A race of a small share of a run."""
    return raced(FOUND, TRUTH, [(64, 0.1), *TRIED], seconds=share * 75 / 0.8)


def contrary() -> Measurements:
    """One setting takes an eighth of what the law says."""
    odd = (128, TRUTH.best_lr(128) * 0.8)
    return raced(FOUND, TRUTH, [(64, 0.1), *TRIED, odd], slower={odd: 0.12})


def wild() -> Measurements:
    """All diverge."""
    return raced(FOUND, replace(TRUTH, lr_max=1e-3, edge=1.0), [(64, 0.1), *TRIED])


def standing() -> Measurements:
    """Nothing gets better than the start, nor diverges."""
    found = short()
    assert found.race is not None
    lanes = tuple(
        replace(lane, metrics=(4.0,) * len(lane.metrics)) for lane in found.race.lanes
    )
    return replace(found, race=replace(found.race, lanes=lanes))


def broken() -> Measurements:
    """Today's setting diverges, others reach the target."""
    truth = replace(TRUTH, lr_max=0.02, edge=4.0)
    batches, factors = (4, 8, 16, 32, 64, 128), (0.4, 0.9, 2)
    tried = [(b, truth.best_lr(b) * off) for b in batches for off in factors]
    return raced(FOUND, truth, [(64, 0.1), *tried, *tried])


def lost() -> Measurements:
    """Today's rate is far too large, but does not diverge."""
    truth = replace(TRUTH, lr_max=0.002, price=4.0)
    tried = [
        (b, truth.best_lr(b) * off)
        for b in (8, 16, 32, 64)
        for off in (0.3, 0.8, 1.6, 2.2)
    ]
    return raced(FOUND, truth, [(64, 0.1), *tried, *tried], seconds=500)


@cache
def decided_on(case: Callable[[], Measurements]) -> Decision:
    return decide(case())


@pytest.mark.parametrize(
    ("case", "decided", "start"),
    [
        (far, True, "Train with B = "),
        (good, True, "Stay at B = 16 and lr 0.1 (raced to the target): "),
        (short, False, "Worth trying (raced for "),
        (contrary, False, "Undecided, since race and laws contradict each other: "),
        (wild, False, "Undecided: all 13 runs of the race diverged, "),
        (standing, False, "Undecided: nothing that was raced got better than the "),
        (broken, True, "Train with B = "),
        (lost, True, "Train with B = "),
        (lambda: FOUND, False, "Worth trying (laws only): B = 16 and lr "),
        (
            lambda: measured(16),
            False,
            "Undecided (laws only): they find nothing better than today's B = 16",
        ),
    ],
)
def test_what_is_said(
    case: Callable[[], Measurements], decided: bool, start: str
) -> None:
    decision = decided_on(case)
    plan, choice = decision.plan, decision.choice
    text = plan.verdict
    assert text.startswith(start)
    assert plan.decided == decided
    # Whoever is told what to do is not told that it is open, and the other way round.
    assert ("What would settle it" in text) == (not decided)
    assert ("Undecided" in text or "Worth trying" in text) == (not decided)
    assert ("instead of" in text) <= (not choice.stays)
    assert ("Stay at" in text) == (decided and choice.stays)
    if "is within 10 %" in text:
        low, high = map(int, re.findall(r"Any B from (\d+) to (\d+)", text)[0])
        assert low <= plan.batch_size <= high
        assert low < high
    if choice.raced is not None:
        assert plan.grade in text or choice.contradiction
    assert not re.search(r"\bnan\b|\binf\b|None|  |\.\.|\. ?:", text)
    assert text.endswith(".")
    for figure in re.findall(r"(?:Train|Worth)\D* B = (\d+)", text):
        assert int(figure) == plan.batch_size


def test_a_gain_is_told_with_its_interval() -> None:
    choice, text = decided_on(far).choice, decided_on(far).plan.verdict
    gain = choice.gain
    assert gain.high < 0.5
    span = f"{gain.value:.2g} ({gain.low:.2g} to {gain.high:.2g})"
    assert f"the same result should take {span} of today's time." in text
    fewest = decide(far(), rb.objectives.Examples()).plan.verdict
    assert "of today's examples" in fewest


def test_today_is_compared_with_the_best_of_the_others() -> None:
    text, choice = decided_on(good).plan.verdict, decided_on(good).choice
    assert choice.raced is not None
    best = min(choice.raced.standings[1:], key=lambda s: s.cost.value)
    assert f"the best else, B = {best.batch_size} with lr {best.lr:.3g}, took" in text


def test_against_one_that_diverged_no_gain_is_told() -> None:
    text = decided_on(broken).plan.verdict
    assert "instead of B = 64 and lr 0.1, which diverged (raced to the target)." in text
    assert "of today's" not in text


def test_beyond_what_was_raced_no_gain_is_told() -> None:
    choice, text = decided_on(lost).choice, decided_on(lost).plan.verdict
    assert choice.raced is not None
    assert not choice.raced.standings[0].runs
    assert choice.gain.high < LEAST_TOLD  # by the law alone
    assert f"should take at most {LEAST_TOLD:.2g} of today's time" in text


@pytest.mark.parametrize(("reached", "luck"), [(1, True), (2, False)])
def test_a_target_that_is_reached_by_luck_is_told(reached: int, luck: bool) -> None:
    """Of four runs of every setting, so many arrive; the others end just before."""
    sure = far()
    race = sure.race
    assert race is not None
    missed = [
        replace(x, steps=x.steps[:-1], metrics=x.metrics[:-1], end="time", seed=9 + i)
        for x in race.lanes[: len(race.lanes) // 2 + 1]
        for i in range(4 - reached)
    ]
    kept = race.lanes if reached == 2 else race.lanes[: len(race.lanes) // 2 + 1]
    decision = decide(replace(sure, race=replace(race, lanes=(*kept, *missed))))
    own = decision.choice.standing
    assert own is not None
    assert (own.runs, own.lanes) == (reached, 4)
    text = decision.plan.verdict
    times = "once" if luck else "2 times"
    assert f"Not sure: it got there {times} in 4 runs." in text
    assert ("a target that more runs reach (1 of 4" in text) == luck


def test_rates_that_all_diverged_are_told() -> None:
    text = decided_on(wild).plan.verdict
    rates = sorted(lr for _, lr in [(64, 0.1), *TRIED])
    assert f"at learning rates from {rates[0]:.3g} to {rates[-1]:.3g}." in text
    assert "What would settle it: a learning rate below" in text


@pytest.mark.parametrize("spent", [1.0, 600.0])
def test_what_would_settle_it_is_more_than_was_spent(spent: float) -> None:
    """A dozen runs to the target, if that is more than twice what it was."""
    found = replace(
        short(), seconds={"Check the job": 0.1 * spent, "Race": 0.9 * spent}
    )
    decision = decide(found)
    assert "a race to the target, --budget" in decision.plan.verdict
    asked, unit = re.findall(r"--budget (\d+)([smh])", decision.plan.verdict)[0]
    seconds = int(asked) * {"s": 1, "m": 60, "h": 3600}[unit]
    needed = max(12 * decision.choice.evidence.run_s, 2 * spent)
    assert needed <= seconds <= needed + 3600 * (unit == "h") + 60
    contradicted = replace(contrary(), seconds={"Race": spent})
    verdict = decide(contradicted).plan.verdict
    assert "a longer race, --budget" in verdict


def test_most_of_the_way_to_a_target_is_not_there() -> None:
    """Its share would be enough of a run without one."""
    plan = decide(short(0.7)).plan
    assert not plan.decided
    assert "a race to the target, --budget" in plan.verdict


def test_of_a_run_without_a_target_half_is_asked_for() -> None:
    found = raced(FOUND, TRUTH, [(64, 0.1), *TRIED], seconds=5, target=False)
    text = decide(replace(found, job=replace(found.job, run_examples=64e4))).plan
    assert "a race over 50% of a run, --budget" in text.verdict


def test_a_run_that_is_known_is_asked_for() -> None:
    """The laws alone: the measuring run got to the target in 3.4 s."""
    text = decide(ran_to_target(100)).plan.verdict
    asked, unit = re.findall(r"--budget (\d+)([smh])(?! or more)", text)[0]
    assert unit == "s"
    assert int(asked) == pytest.approx(12 * 3.4, rel=0.05)
    assert " or more" not in text


def test_a_slow_evaluate_asks_for_the_budget_that_races_by_it() -> None:
    """Ten passes over the data are no length of a run that has a target."""
    found = raced(FOUND, TRUTH, [(64, 0.1), *TRIED], seconds=5, target=False)
    job = replace(found.job, target=0.1)
    verdict = decide(replace(found, job=job, evaluate_s=2.4)).plan.verdict
    assert "a race by evaluate, towards the target, --budget 20m or more" in verdict


def test_no_signal_at_all_is_undecided() -> None:
    found = made_up()
    silent = replace(found.noise[0].plain, grad_norm_sq=-0.05)
    noise = tuple(replace(p, plain=silent) for p in found.noise)
    plan = rb.decide(replace(found, noise=noise)).plan
    assert not plan.decided
    assert "inf" not in " ".join([plan.verdict, *(r.text for r in plan.why)])
    assert "What would settle it" in plan.verdict
