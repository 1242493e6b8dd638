"""The choice: the best by the laws, unless a race knows better."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rightbatch as rb
from cases import made_up, optimum, raced
from reference import relative_time
from rightbatch.plan.choice import choose

powers = st.sampled_from([2**i for i in range(3, 11)])


@settings(max_examples=15, deadline=None)
@given(st.floats(1e-4, 1e-1), st.floats(1e-5, 1e-2), st.floats(4, 4000), powers)
def test_the_choice_is_the_argmin(
    t0: float, t1: float, critical: float, today: int
) -> None:
    found = made_up(t0=t0, t1=t1, critical=critical, today=today)
    choice = choose(found)
    candidates = {o.batch_size for o in choice.options}
    single = [o for o in choice.options if o.accumulation == 1]
    for o in single:
        expected = relative_time(t0, t1, critical, o.batch_size, today)
        if today <= 128:  # today's batch is timed whole, not accumulated
            assert o.time.value == pytest.approx(expected, rel=2e-3)
    best = optimum(t0, t1, critical)
    if 2 <= best <= 128:
        assert choice.chosen.batch_size / 2 <= best <= choice.chosen.batch_size * 2
    assert today in candidates
    low, high = choice.flat
    assert low <= choice.chosen.batch_size <= high


def test_fewest_examples_are_smaller_batches() -> None:
    found = made_up(t0=0.1, t1=1e-3, critical=100)
    fewest, fastest = choose(found, rb.objectives.Examples()), choose(found)
    assert fewest.chosen.batch_size < fastest.chosen.batch_size
    least = min(o.examples.value for o in fewest.options)
    assert fewest.chosen.examples.value <= 1.1 * least


def test_the_race_wins_where_it_disagrees() -> None:
    found = made_up(t0=4e-3, t1=1e-3, critical=100)
    model = choose(found).chosen.batch_size
    other = model * 2
    lost = raced(
        found, {model: (0.8, 0.75, 0.85), other: (1.5, 1.4, 1.6), 64: (1, 1, 1)}
    )
    choice = choose(lost)
    assert (choice.chosen.batch_size, choice.decided_by) == (other, "race")
    plan = rb.decide(lost).plan
    assert any(r.topic == "race" and "race decides" in r.text for r in plan.why)
    # Not told apart: the laws stay.
    close = raced(
        found, {model: (1.0, 0.8, 1.2), other: (1.1, 0.9, 1.3), 64: (1, 1, 1)}
    )
    assert choose(close).chosen.batch_size == model
    # A race in time says nothing about the fewest examples.
    assert choose(lost, rb.objectives.Examples()).decided_by == "laws"


def test_noise_without_a_signal_is_undecided() -> None:
    # The optimum runs from below 64 to thousands with the critical batch, whose signal
    # is not told from zero.
    sizes = (1, 4, 16, 64, 256, 1024, 4096)
    found = made_up(t0=0.05, t1=1e-4, sizes=sizes, spread=3.0, points=2)
    plan = rb.decide(found).plan
    assert not plan.decided
    assert plan.verdict.startswith("Undecided")
