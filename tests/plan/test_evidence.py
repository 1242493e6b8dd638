"""What a race proves, and what the laws alone do not."""

from dataclasses import replace

import rightbatch as rb
from cases import made_up, raced, ran_to_target
from rightbatch.plan.choice import choose


def test_race_against_laws_is_undecided() -> None:
    found = made_up(t0=4e-3, t1=1e-3, critical=100)
    model = choose(found).chosen.batch_size
    plan = rb.decide(raced(found, {model: (0.7, 0.6, 0.8), 64: (1, 1, 1)})).plan
    assert plan.batch_size == 64  # still the best guess
    assert not plan.decided
    assert "contradict" in plan.verdict
    assert "0.6 to 0.8" in plan.verdict


def test_today_is_kept_where_race_and_laws_agree() -> None:
    found = made_up(t0=4e-3, t1=1e-3, critical=100, today=16)
    assert choose(found).chosen.batch_size == 16
    rivals = {8: (0.9, 0.8, 1.0), 32: (0.95, 0.85, 1.05), 16: (1, 1, 1)}
    plan = rb.decide(raced(found, rivals)).plan
    assert plan.decided
    assert plan.verdict.startswith("Keep B = 16")


def test_laws_alone_are_worth_trying_and_no_verdict() -> None:
    found = made_up(t0=0.05, t1=1e-4, critical=1000)
    choice = choose(found)
    assert choice.sure
    assert not choice.decided
    plan = rb.decide(found).plan
    assert plan.verdict.startswith(f"Worth trying: B = {plan.batch_size}")
    assert "none was run" in plan.verdict
    time = choice.chosen.time
    candidates = {
        plan.batch_size: (1 / time.value, 1 / time.high, 1 / time.low),
        64: (1, 1, 1),
    }
    # A hundredth of ten passes over 100,000 examples: 157 steps of 64.
    assert choose(raced(found, candidates, steps=157)).decided
    short = rb.decide(raced(found, candidates, steps=156)).plan
    assert not short.decided
    assert "trained on 9,980" in short.verdict
    # With a target reached the run is known: 1,000 steps, so ten are a hundredth.
    reached = ran_to_target(1000)
    for steps, decided in ((10, True), (9, False)):
        best = choose(reached).chosen
        rivals = {
            best.batch_size: (1 / best.time.value, 0.95, 2.0),
            64: (1, 1, 1),
        }
        assert choose(raced(reached, rivals, steps=steps)).decided is decided
    # An objective whose batch did not race is not proven by the race of another.
    cheap = made_up(t0=0.1, t1=1e-3, critical=100)
    time = choose(cheap).chosen.time
    won = {choose(cheap).chosen.batch_size: (1 / time.value, 0.95, 1 / time.low)}
    assert choose(raced(cheap, {**won, 64: (1, 1, 1)})).decided
    assert not choose(
        raced(cheap, {**won, 64: (1, 1, 1)}), rb.objectives.Examples()
    ).decided


def test_a_race_that_tells_nothing_settles_nothing() -> None:
    sizes = (1, 4, 16, 64, 256, 1024, 4096)
    found = made_up(t0=0.05, t1=1e-4, sizes=sizes, spread=3.0, points=2)
    chosen = choose(found).chosen.batch_size
    wide = {chosen: (1.5, 0.5, 4.0), 64: (1.0, 1.0, 1.0)}
    assert not choose(raced(found, wide)).decided
    clear = {chosen: (1.5, 1.4, 1.6), 64: (1.0, 1.0, 1.0)}
    assert choose(raced(found, clear)).decided
    still = raced(found, clear)
    assert still.race is not None
    candidates = tuple(
        replace(candidate, metrics=(2.0, 2.0, 2.0))
        for candidate in still.race.candidates
    )
    still = replace(still, race=replace(still.race, candidates=candidates))
    assert not choose(still).decided  # nobody left the start


def test_a_candidate_counts_only_for_the_split_it_ran() -> None:
    found = made_up(t0=4e-3, t1=1e-3, critical=100)
    fast = raced(found, {128: (3.0, 2.9, 3.1), 16: (1.1, 1.0, 1.2), 64: (1, 1, 1)})
    assert choose(fast).chosen.batch_size == 128
    tight = choose(fast, memory_bytes=10_000_000 + 17 * 100_000)
    assert tight.chosen.batch_size != 128  # raced whole, it would have to be split


def test_a_race_that_leaves_open_who_is_faster_proves_nothing() -> None:
    found = made_up(t0=0.05, t1=1e-4, critical=1000)
    best = choose(found).chosen
    low, high = 1 / best.time.high, 1 / best.time.low
    raced_at = {64: (1.0, 1.0, 1.0)}
    for interval, decided in (
        ((1.6, 0.54, 4.9), False),  # too wide to say anything
        ((0.95, 0.5, low), False),  # slower, as likely as not
        ((1.0, 0.95, high), True),
    ):
        plan = rb.decide(raced(found, {best.batch_size: interval, **raced_at})).plan
        assert plan.decided is decided
    # The run counts as what was trained without reaching the target, if that is more.
    longer = [replace(p, examples=10_000_000) for p in found.noise]
    found = replace(found, noise=tuple(longer))
    candidates = {best.batch_size: (1 / best.time.value, low, high), **raced_at}
    assert not rb.decide(raced(found, candidates, steps=157)).plan.decided
