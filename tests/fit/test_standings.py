"""Standings: the law's belief, brought up to date by every setting's own runs."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beliefs import belief
from reference import law_by_loops, normal_update
from rightbatch.fit.passages import Passage, Passages
from rightbatch.fit.rate_law import RateLaw
from rightbatch.fit.standings import (
    FAILED,
    LEAST_MISFIT,
    SEED_RUNS,
    SEED_SCATTER,
    standings_of,
)

DRAWS = 20_000
PARAMETERS = [math.log(100), 0.0, 1.0, math.log(2), 0.0, 0.0]


def law(scatter: float = 0.3, level: float = 5.0) -> RateLaw:
    """Without doubt of its parameters, so that only its scatter counts."""
    x = np.array(PARAMETERS)
    return RateLaw(
        belief(growth=0.0, power=1.0),
        x,
        np.tile(x, (DRAWS, 1)),
        level,
        scatter,
        math.nan,
        1,
    )


def passages(
    *runs: tuple[tuple[int, float], float, bool],
    diverged: tuple[tuple[int, float], ...] = (),
) -> Passages:
    """Of one level: setting, steps, whether it was reached."""
    return Passages(
        levels=(1.0,),
        seconds=(1.0,),
        to_target=True,
        passages=tuple(
            Passage(batch_size=b, lr=lr, seed=i, level=0, steps=steps, reached=reached)
            for i, ((b, lr), steps, reached) in enumerate(runs)
        ),
        diverged=diverged,
    )


def by_law(setting: tuple[int, float], level: float = 5.0) -> float:
    return level + law_by_loops(PARAMETERS, (64, 0.1), [setting])[0]


A, B = (64, 0.1), (16, 0.05)


def test_never_run_is_the_law_give_or_take_its_misfit() -> None:
    found = standings_of(law(0.3), passages((A, 300.0, True)), [A, B])
    # Between runs of one setting alone there is as much scatter as is expected.
    misfit = math.sqrt(0.3**2 - found.seed_scatter**2)
    assert found.seed_scatter == pytest.approx(SEED_SCATTER)
    assert found.draws[:, 1].mean() == pytest.approx(by_law(B), abs=0.01)
    assert found.draws[:, 1].std() == pytest.approx(misfit, rel=0.03)
    assert (found.lanes.tolist(), found.runs.tolist()) == ([1, 0], [1, 0])
    exact = standings_of(law(0.01), None, [A, B])
    assert exact.draws[:, 1].std() == pytest.approx(LEAST_MISFIT, rel=0.03)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.floats(100, 2000), min_size=1, max_size=5),
    st.floats(0.12, 0.6),
)
def test_runs_update_the_belief_as_normal_observations_do(
    steps: list[float], scatter: float
) -> None:
    found = standings_of(law(scatter), passages(*((A, s, True) for s in steps)), [A])
    seeds = found.seed_scatter
    misfit = math.sqrt(max(scatter**2 - seeds**2, LEAST_MISFIT**2))
    mean, sd = normal_update(by_law(A), misfit, [math.log(s) for s in steps], seeds)
    assert found.draws[:, 0].mean() == pytest.approx(mean, abs=0.03 * (1 + sd))
    assert found.draws[:, 0].std() == pytest.approx(sd, rel=0.05)


def test_scatter_between_runs_is_pooled_over_settings() -> None:
    """Squares about each setting's own mean, with what is expected as three runs."""
    runs = [(A, 300.0, True), (A, 450.0, True), (B, 500.0, True), (B, 700.0, True)]
    runs += [(B, 650.0, True), ((8, 0.01), 900.0, True), (A, 999.0, False)]
    found = standings_of(law(), passages(*runs), [A, B])
    own = [np.log([300.0, 450.0]), np.log([500.0, 700.0, 650.0])]
    squares = sum(float(np.square(x - x.mean()).sum()) for x in own)
    expected = (squares + SEED_RUNS * SEED_SCATTER**2) / (3 + SEED_RUNS)
    assert found.seed_scatter == pytest.approx(math.sqrt(expected))


def test_one_that_did_not_get_there_is_slower_than_it_trained() -> None:
    short = math.exp(by_law(A) - 1)
    calm = standings_of(law(), passages((A, short, False), (B, 400.0, True)), [A, B])
    assert calm.draws[:, 0].min() > math.log(short)
    assert calm.draws[:, 0].mean() == pytest.approx(by_law(A), abs=0.02)
    late = standings_of(law(), passages((A, 9e4, False), (B, 400.0, True)), [A, B])
    assert late.draws[:, 0].min() > math.log(9e4)
    assert late.runs.tolist() == [0, 1]


def test_a_run_that_failed_beside_others_counts_against_its_setting() -> None:
    both = standings_of(law(), passages((A, 300.0, True), (A, 300.0, False)), [A])
    good = standings_of(law(), passages((A, 300.0, True), (A, 300.0, True)), [A])
    before = standings_of(law(), None, [A]).draws.mean()
    misfit, around = 0.3**2 - SEED_SCATTER**2, (FAILED / 2) ** 2  # of the two runs
    trust = misfit / (misfit + around / 2)
    seen = math.log(300.0) + FAILED / 2
    assert both.draws.mean() == pytest.approx(
        before + trust * (seen - before), abs=0.02
    )
    assert both.draws.mean() > good.draws.mean()
    assert both.draws.std() > 2 * good.draws.std()  # nobody knows which is typical
    assert (both.lanes.tolist(), both.runs.tolist()) == ([2], [1])


@pytest.mark.parametrize("steps", [1.0, 100.0, 140.0])
def test_a_run_cut_short_says_nothing_beside_one_that_arrived(steps: float) -> None:
    """A setting left early in the race and run again later is not the faster for it."""
    cut = standings_of(law(), passages((A, 300.0, True), (A, steps, False)), [A])
    alone = standings_of(law(), passages((A, 300.0, True)), [A])
    assert np.array_equal(cut.draws, alone.draws)
    assert (cut.lanes.tolist(), cut.runs.tolist()) == ([2], [1])


def test_one_that_failed_presumes_nothing_of_smaller_batches() -> None:
    seen = passages(((256, 0.1), 1.0, False), (B, 400.0, True))
    found = standings_of(law(), seen, [(256, 0.2), (128, 0.1), (64, 0.2)])
    excess = found.draws.mean(0) - [
        by_law(s) for s in [(256, 0.2), (128, 0.1), (64, 0.2)]
    ]
    assert excess == pytest.approx(0.0, abs=0.02)


def test_beyond_one_that_diverged_others_are_presumed_to_as_well() -> None:
    around = [(64, 0.2), (32, 0.1), (32, 0.4), (128, 0.2), (64, 0.05), (64, 0.1)]
    seen = passages((A, 3e3, False), (B, 400.0, True), diverged=(A,))
    found = standings_of(law(), seen, around)
    excess = found.draws.mean(0) - [by_law(s) for s in around]
    # A larger or equal rate at a smaller or equal batch; not the lane's own bound.
    assert excess[:3] == pytest.approx(math.log(10), abs=0.02)
    assert excess[3:5] == pytest.approx(0.0, abs=0.02)
    assert found.draws[:, 5].min() > math.log(3e3)
    ran = standings_of(law(), seen, [B, (16, 0.1)])
    assert ran.draws[:, 0].mean() < ran.draws[:, 1].mean() - 1
