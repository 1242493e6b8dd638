"""What every order does: randomness of its own, states, refusals."""

import math
from typing import Any

import numpy as np
import pytest
import torch

import rightbatch as rb

ORDERS = {
    "shuffled": lambda: "shuffled",
    "replacement": lambda: "replacement",
    "poisson": lambda: "poisson",
    "strata": lambda: rb.data.Strata(np.arange(60) % 7 == 0, {True: 3}),
    "pairs": lambda: rb.data.Pairs(np.arange(60) // 5, each=2),
    "weighted": lambda: rb.data.Weighted(1.0 + np.arange(60)),
    "distinct": lambda: rb.data.Distinct(np.arange(60) // 2),
    "tokens": lambda: rb.data.Tokens(1 + np.arange(60) % 9, 20),
    "tokens of a window": lambda: rb.data.Tokens(1 + np.arange(60) % 9, 20, window=16),
}


@pytest.mark.parametrize("name", ORDERS)
def test_every_draw_has_a_randomness_of_its_own(name: str) -> None:
    """However often an example comes, it is augmented anew; and again the same."""
    drawn = []
    for _ in range(2):
        stream = rb.BatchStream((torch.arange(60),), 12, order=ORDERS[name]())
        seeds: list[int] = []
        while stream.step < 40:
            for step in stream.steps():
                list(step)
                seeds += stream._planner.plan(stream._cursor, 12).cut.seeds.tolist()
        assert len(set(seeds)) == len(seeds)
        drawn.append(seeds)
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (rb.data.Pairs([0] * 4 + [1] * 6), rb.data.Pairs([0] * 6 + [1] * 4)),
        (rb.data.Pairs([0, 1] * 5), rb.data.Pairs([0] * 5 + [1] * 5)),
        (
            rb.data.Strata([0] * 5 + [1] * 5),
            rb.data.Strata([0] * 5 + [1] * 5, multiple=2),
        ),
        (rb.data.Weighted(np.arange(1, 11)), rb.data.Weighted(np.arange(2, 12))),
        (rb.data.Distinct(np.arange(10) // 2), rb.data.Distinct(np.arange(10) % 5)),
        (rb.data.Tokens([3] * 10, 9), rb.data.Tokens([3] * 9 + [4], 9)),
        (rb.data.Tokens([3] * 10, 9, window=4), rb.data.Tokens([3] * 10, 9)),
        (rb.data.Tokens([1] * 10, 9, count="tokens"), rb.data.Tokens([1] * 10, 9)),
        (rb.data.Strata([0, 1] * 5), rb.data.Strata([0] * 5 + [1] * 5)),
    ],
)
def test_a_state_of_another_composition_is_refused(one: Any, other: Any) -> None:
    data = (torch.arange(10),)
    state = rb.BatchStream(data, 2, order=one).state_dict()
    with pytest.raises(rb.SettingError, match="other labels, lengths or settings"):
        rb.BatchStream(data, 2, order=other).load_state_dict(state)


def test_poisson_steps_are_those_of_their_place() -> None:
    walked = rb.BatchStream((torch.arange(50),), 10, order="poisson")
    list(walked)
    jumped = rb.BatchStream((torch.arange(50),), 10, order="poisson")
    jumped.set_epoch(1)
    assert next(iter(walked))[0].tolist() == next(iter(jumped))[0].tolist()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rb.data.Weighted([1.0, -1.0]), "from -1 to 1"),
        (lambda: rb.data.Weighted([1.0, math.nan]), "from nan"),
        (lambda: rb.data.Weighted([0.0, 0.0]), "from 0 to 0"),
        (lambda: rb.data.Weighted([1.0, 0.0]), "weight 0"),
        (lambda: rb.data.Strata([[1, 2]]), "one axis"),
        (
            lambda: rb.data.Strata([(torch.zeros(2), 1), (torch.zeros(3), 0)]),
            "labels alone",
        ),
        (lambda: rb.data.Strata([]), "one axis"),
        (lambda: rb.data.Strata([0, 1], "equal"), "proportional, neyman"),
        (lambda: rb.data.Strata([0, 1], {2: 1}), "no example has label 2"),
        (lambda: rb.data.Strata([0, 1], {1: 2}), "it has 1 in all"),
        (lambda: rb.data.Strata([0.0, math.nan]), "NaN"),
        (lambda: rb.data.Strata([0, 1]).observe([1, 1]), "no effect"),
        (lambda: rb.data.Strata([0, 1], "neyman").observe([1, -1]), "from -1 to 1"),
        (lambda: rb.data.Strata([0, 1], "neyman").observe([0, 0]), "from 0 to 0"),
        (lambda: rb.data.Strata([0, 1], "neyman").observe([1]), "shape"),
        (lambda: rb.data.Strata([None, 1, "a"]), "of one kind"),
        (
            lambda: rb.BatchStream(
                (torch.arange(9),), 4, order=rb.data.Strata(np.arange(9) / 7)
            ),
            "np.quantile",
        ),
        (lambda: rb.data.Pairs([0, 0, 1, 1], each=1), "at least 2"),
        (lambda: rb.data.Distinct([]), "an axis of examples"),
        (lambda: rb.data.Distinct(["a", None]), "of one kind"),
        (lambda: rb.data.Distinct([["a"], ["b", "c"]]), "as many keys"),
        (
            lambda: rb.BatchStream(
                (torch.arange(4),), 3, order=rb.data.Distinct([0, 0, 1, 2])
            ),
            "one key is in 2 of 4",
        ),
        (lambda: rb.data.Tokens([5, 60], 50), "longer than the budget"),
        (lambda: rb.data.Tokens([5, 0], 50), "empty"),
        (
            lambda: rb.BatchStream(
                (torch.arange(4),), 3, order=rb.data.Pairs([0, 0, 1, 1], each=2)
            ),
            "no whole number",
        ),
        (
            lambda: rb.BatchStream(
                (torch.arange(4),), 6, order=rb.data.Pairs([0, 0, 1, 1], each=2)
            ),
            "needs 3 classes",
        ),
        (
            lambda: rb.BatchStream(
                (torch.arange(3),), 2, order=rb.data.Strata([0, 1, 2])
            ),
            "one of each of 3 strata",
        ),
        (
            lambda: rb.BatchStream(
                (torch.arange(2),), 4, order=rb.data.Tokens([5, 9], 9, count="tokens")
            ),
            "longest example",
        ),
    ],
)
def test_what_cannot_be_composed_is_refused(make: Any, message: str) -> None:
    with pytest.raises(rb.SettingError, match=message):
        make()
